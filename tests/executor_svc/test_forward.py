"""The packed batch of a forward pass, its sizes, and that padding touches no row and no block but its own."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_harness import Hand, kv_cache_of, make_runner, random_tokens, save_checkpoint

from executor_svc.bucket_sizes import bucket_for, bucket_sizes, captured_tokens, mixed_shapes, shape_for
from executor_svc.forward import BatchShape, ForwardBatch, pack_batch
from executor_svc.graphs import DecodeBuckets, MixedBuckets, static_logits
from executor_svc.model_runner import ModelRunner
from executor_svc.plan import Prefill, RowSampling
from executor_svc.torch_runner import TorchRunner

DUMMY = 99
runs = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), max_size=5)


@given(st.lists(st.integers(0, 59), max_size=6), runs, st.tuples(*[st.integers(0, 4)] * 3))
def test_a_packed_batch_says_which_tokens_are_whose(
    decode_rows: list[int], runs: list[tuple[int, int]], padding: tuple[int, int, int]
) -> None:
    prefills = [Prefill(60 + i, first, count, False) for i, (first, count) in enumerate(runs)]
    rows = np.array(decode_rows, np.int32)
    exact = BatchShape.of(rows, prefills)
    more_decodes = min(padding[0], exact.num_tokens + padding[2] - exact.num_decodes)
    shape = BatchShape(
        exact.num_tokens + padding[2], exact.num_decodes + more_decodes, exact.num_prefills + padding[1]
    )
    batch = ForwardBatch.of(shape, torch.tensor(pack_batch(shape, rows, prefills, DUMMY)))
    assert batch.decode_rows.tolist() == decode_rows + [DUMMY] * more_decodes
    assert batch.prefill_rows.tolist() == [run.row for run in prefills] + [DUMMY] * padding[1]
    starts = batch.prefill_starts.tolist()
    tokens = list(zip(batch.token_rows.tolist(), batch.token_offsets.tolist(), strict=True))
    assert tokens[: exact.num_decodes] == [(row, 0) for row in decode_rows]
    assert starts[0] == exact.num_decodes
    for index, run in enumerate(prefills):
        assert starts[index + 1] - starts[index] == run.num_tokens
        own = tokens[starts[index] : starts[index + 1]]
        assert own == [(run.row, offset) for offset in range(run.num_tokens)]
    assert set(starts[len(prefills) :]) == {exact.num_tokens}
    assert tokens[exact.num_tokens :] == [(DUMMY, 0)] * padding[2]
    counts = dict.fromkeys(batch.segment_rows.tolist(), 0)
    for row, _ in tokens:
        counts[row] = counts.get(row, 0) + 1
    for row, count in zip(batch.segment_rows.tolist(), batch.segment_counts.tolist(), strict=True):
        assert row == DUMMY or decode_rows.count(row) > 1 or count == counts[row]


@given(st.integers(1, 3000))
def test_bucket_sizes_rise_to_the_most_rows_and_waste_less_than_a_tenth(max_num_seqs: int) -> None:
    sizes = bucket_sizes(max_num_seqs)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == max_num_seqs
    for num_rows in range(1, max_num_seqs + 1):
        size = bucket_for(num_rows, sizes)
        assert size >= num_rows
        assert num_rows <= 64 or (size - num_rows) / size < 0.1


def test_there_are_not_many_bucket_sizes() -> None:
    assert bucket_sizes(1) == [1]
    assert bucket_sizes(256)[:13] == [1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 72]
    assert len(bucket_sizes(256)) < 35


@given(st.integers(1, 300), st.integers(1, 5000), st.data())
def test_a_mixed_shape_holds_the_batch_it_is_taken_for(
    max_num_seqs: int, most_tokens: int, data: st.DataObject
) -> None:
    shapes = mixed_shapes(max_num_seqs, most_tokens)
    assert len(set(shapes)) == len(shapes)
    num_tokens = data.draw(st.integers(1, most_tokens))
    num_decodes = data.draw(st.integers(0, min(max_num_seqs, num_tokens - 1)))
    needed = BatchShape(num_tokens, num_decodes, data.draw(st.integers(1, num_tokens - num_decodes)))
    shape = shape_for(needed, shapes)
    if shape is None:
        assert needed.num_decodes > 256 or needed.num_prefills > 64
        return
    for name in BatchShape.__dataclass_fields__:
        assert getattr(needed, name) <= getattr(shape, name)
    assert shape.num_tokens <= most_tokens
    assert shape.num_decodes <= min(max_num_seqs, shape.num_tokens)


@given(st.integers(1025, 8192))
def test_less_than_an_eighth_of_a_long_prompt_s_step_is_padding(num_tokens: int) -> None:
    shape = shape_for(BatchShape(num_tokens, 0, 1), mixed_shapes(256, 8192))
    assert shape is not None
    assert (shape.num_tokens - num_tokens) / shape.num_tokens < 0.125


def test_steps_are_captured_that_their_work_does_not_hide_the_launches_of() -> None:
    layer_06b, layer_14b = 15_728_640, 330_301_440
    assert captured_tokens(layer_06b, 8192) == captured_tokens(layer_06b, 20_000) == 8192
    assert captured_tokens(layer_06b, 2048) == 2048
    assert 2048 <= captured_tokens(layer_14b, 8192) <= 2560
    assert captured_tokens(10**15, 8192) == 1


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchRunner]:
    folder = tmp_path_factory.mktemp("qwen3")
    save_checkpoint(folder, "Qwen3", num_hidden_layers=2)
    runner = make_runner(folder, max_num_seqs=14)
    assert isinstance(runner, TorchRunner)
    yield runner
    runner.close()


SAMPLINGS = [
    RowSampling(),
    RowSampling(temperature=0.9),
    RowSampling(temperature=0.9, top_k=9, presence_penalty=0.3),
    RowSampling(temperature=1.1, logprobs=2, report_gap=True),
    RowSampling(temperature=1.0, min_tokens=6, end_token_ids=np.arange(40, dtype=np.int32)),
]


def generate(runner: TorchRunner, padded: bool, num_rows: int) -> Hand:
    """Some steps of several plans, with rows that end and begin between them."""
    runner.reset()
    model_runner = runner.model_runner
    logits = static_logits(model_runner, 14)
    model_runner.decode_steps = DecodeBuckets(model_runner, 14, logits) if padded else None
    model_runner.mixed_steps = MixedBuckets(model_runner, 14, 200, logits) if padded else None
    hand, rng = Hand(runner, num_rows), np.random.default_rng(num_rows)
    for row in range(num_rows):
        sampling = SAMPLINGS[row % len(SAMPLINGS)] if num_rows > 3 else RowSampling(temperature=0.8)
        hand.start(row, random_tokens(rng, 3 + 2 * row), sampling, seed=row)
        hand.prefill(row)
    hand.run()
    for steps in (1, 3, 1, 2):
        for row in rng.permutation(num_rows)[: max(1, num_rows - 1)].tolist():
            hand.decode(row, int(rng.integers(1, steps + 1)))
        hand.run()
    hand.release(0)
    hand.start(0, random_tokens(rng, 35), RowSampling(prompt_logprobs=1))
    for count in (7, None):
        hand.prefill(0, count)
        for row in range(1, num_rows):
            hand.decode(row)
        hand.run()
    hand.decode(0, 4)
    hand.run()
    return hand


@pytest.mark.parametrize("num_rows", [1, 2, 3, 5, 9, 14])
def test_steps_over_static_padded_buffers_sample_what_exact_ones_do(
    runner: TorchRunner, num_rows: int
) -> None:
    exact = generate(runner, False, num_rows)
    padded = generate(runner, True, num_rows)
    for row in range(num_rows):
        assert padded.rows[row].token_ids == exact.rows[row].token_ids
        assert padded.rows[row].length == int(runner.model_runner.state.lengths[row])


def test_padding_writes_to_the_dummy_row_s_slot_alone_and_leaves_it_as_it_was(runner: TorchRunner) -> None:
    generate(runner, True, 9)
    state = runner.model_runner.state
    assert int(state.lengths[state.dummy_row]) == 0
    assert not state.token_ids[state.dummy_row].any()
    assert not state.block_tables[state.dummy_row].any()
    for tensor in (*kv_cache_of(runner).keys, *kv_cache_of(runner).values):
        assert tensor[0].isfinite().all()
        assert not tensor[0, 1:].any()


@torch.inference_mode()
def padded_forward(
    model_runner: ModelRunner, shape: BatchShape, rows: list[int], prefills: list[Prefill]
) -> torch.Tensor:
    """Hidden states of the batch's own tokens, computed with padding up to `shape`."""
    state, decode_rows = model_runner.state, np.array(rows, np.int32)
    packed = torch.tensor(pack_batch(shape, decode_rows, prefills, state.dummy_row))
    hidden, _ = model_runner.forward(ForwardBatch.of(shape, packed))
    return hidden[: BatchShape.of(decode_rows, prefills).num_tokens]


def test_a_mixed_pass_over_padded_buffers_gives_the_hidden_states_of_an_exact_one(
    runner: TorchRunner,
) -> None:
    hand = generate(runner, False, 6)
    rng = np.random.default_rng(1)
    for row in (7, 8):
        hand.start(row, random_tokens(rng, 12))
    hand.run()
    prefills = [Prefill(7, 0, 12, True), Prefill(8, 0, 5, False)]
    exact = padded_forward(runner.model_runner, BatchShape(20, 3, 2), [4, 1, 3], prefills)
    padded = padded_forward(runner.model_runner, BatchShape(32, 8, 4), [4, 1, 3], prefills)
    torch.testing.assert_close(padded, exact, rtol=1e-4, atol=1e-5)
