"""The CPU's attention and the reference against a plain loop over positions, with NaN wherever no row may look."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_models import QWEN3, gpu

from executor_svc.attention import AttentionContext, ReferenceAttention, SdpaAttention
from executor_svc.attention import reference as reference_module
from executor_svc.attention import sdpa as sdpa_module
from executor_svc.attention.reference import padded_num_blocks
from executor_svc.backends import make_backend
from executor_svc.kv_cache import KVCache, cpu_num_blocks
from executor_svc.models.config import ModelConfig

Attention = type[ReferenceAttention] | type[SdpaAttention]
each_attention = pytest.mark.parametrize("attention", [ReferenceAttention, SdpaAttention])
NUM_BLOCKS = 320  # enough for the longest examples at one token a block


def model_config(num_heads: int, num_kv_heads: int, head_dim: int) -> ModelConfig:
    """Of its fields only the heads, their size and the number of layers matter here."""
    return replace(QWEN3, num_attention_heads=num_heads, num_key_value_heads=num_kv_heads, head_dim=head_dim)


class Scene:
    """Sequences with known keys and values, laid out in shuffled blocks of a cache that else holds NaN."""

    def __init__(
        self,
        seed: int,
        spans: list[tuple[int, int]],
        decodes: list[int],
        block_size: int,
        device: str = "cpu",
    ) -> None:
        """`spans` are (tokens before, tokens in this step) of prefilled rows, `decodes` context lengths."""
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        self.num_prefills = len(spans)
        self.num_kv_heads = int(rng.integers(1, 4))
        self.num_heads = self.num_kv_heads * int(rng.integers(1, 4))
        self.head_dim = 2 * int(rng.integers(1, 9))
        self.contexts = [before + count for before, count in spans] + decodes
        self.counts = [count for _, count in spans] + [1] * len(decodes)
        config = model_config(self.num_heads, self.num_kv_heads, self.head_dim)
        self.cache = KVCache(config, NUM_BLOCKS, block_size, torch.float32, torch.device(device))
        for tensor in (*self.cache.keys, *self.cache.values):
            tensor.fill_(torch.nan)
        shape = (self.num_kv_heads, self.head_dim)
        self.keys = [torch.randn(length, *shape).to(device) for length in self.contexts]
        self.values = [torch.randn(length, *shape).to(device) for length in self.contexts]
        self.queries = [torch.randn(count, self.num_heads, self.head_dim).to(device) for count in self.counts]
        free = (rng.permutation(NUM_BLOCKS - 1) + 1).tolist()
        # What lies past a row's own blocks in its table is some other row's block.
        width = -(-max(self.contexts) // block_size) + 2
        self.tables = torch.tensor(
            rng.integers(0, NUM_BLOCKS, (len(self.contexts), width)), dtype=torch.int32, device=device
        )
        self.slots = []
        for row, length in enumerate(self.contexts):
            num_blocks = -(-length // block_size)
            blocks = [free.pop() for _ in range(num_blocks)]
            self.tables[row, :num_blocks] = torch.tensor(blocks, dtype=torch.int32)
            positions = torch.arange(length)
            slots = torch.tensor(blocks)[positions // block_size] * block_size + positions % block_size
            self.slots.append(slots.to(device))

    def run(self, layer: int, attention: Attention = ReferenceAttention) -> list[torch.Tensor]:
        """Puts the earlier positions in the cache, runs the step; returns each row's output."""
        befores = [length - count for length, count in zip(self.contexts, self.counts, strict=True)]
        for row, before in enumerate(befores):
            self.cache.write(
                layer, self.keys[row][:before], self.values[row][:before], self.slots[row][:before]
            )
        order = self.token_order()
        for row in order:
            own = slice(befores[row], None)
            self.cache.write(layer, self.keys[row][own], self.values[row][own], self.slots[row][own])
        output = attention(self.cache).attend(
            layer, torch.cat([self.queries[row] for row in order]), self.context(befores)
        )
        parts = dict(zip(order, output.split([self.counts[row] for row in order]), strict=True))
        return [parts[row] for row in range(len(order))]

    def token_order(self) -> list[int]:
        """Rows in the order of their tokens: those that decode, then the prefilled ones."""
        rows = list(range(len(self.counts)))
        return rows[self.num_prefills :] + rows[: self.num_prefills]

    def context(self, befores: list[int]) -> AttentionContext:
        """The batch of all rows."""
        ints = partial(torch.tensor, dtype=torch.int32, device=self.tables.device)
        num_decodes = len(self.counts) - self.num_prefills
        starts = np.cumsum([num_decodes, *self.counts[: self.num_prefills]]).tolist()
        return AttentionContext(
            slot_mapping=torch.cat([self.slots[row][befores[row] :] for row in self.token_order()]),
            block_tables=self.tables,
            lengths=ints(befores),
            decode_rows=ints(range(self.num_prefills, len(self.counts))),
            prefill_rows=ints(range(self.num_prefills)),
            prefill_starts=ints(starts),
        )

    def expected(self, row: int) -> torch.Tensor:
        """One position and one head at a time, in float64."""
        keys, values = self.keys[row].double(), self.values[row].double()
        output = torch.empty_like(self.queries[row], dtype=torch.float64)
        first = self.contexts[row] - self.counts[row]
        for index in range(self.counts[row]):
            for head in range(self.num_heads):
                kv_head = head // (self.num_heads // self.num_kv_heads)
                visible = first + index + 1
                scores = keys[:visible, kv_head] @ self.queries[row][index, head].double()
                weights = (scores / math.sqrt(self.head_dim)).softmax(0)
                output[index, head] = weights @ values[:visible, kv_head]
        return output


spans = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), max_size=3)
decodes = st.lists(st.integers(1, 40), max_size=4)


@each_attention
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), spans=spans, decodes=decodes, block_size=st.sampled_from([1, 4, 5]))
def test_every_row_sees_its_own_context_and_nothing_else(
    attention: Attention, seed: int, spans: list[tuple[int, int]], decodes: list[int], block_size: int
) -> None:
    assume(spans or decodes)
    scene = Scene(seed, spans, decodes, block_size)
    outputs = scene.run(1, attention)
    for row, output in enumerate(outputs):
        torch.testing.assert_close(output.double(), scene.expected(row), rtol=1e-4, atol=1e-5)
    assert scene.cache.keys[0].isnan().all(), "another layer was written"


@each_attention
def test_rows_give_the_same_numbers_alone_and_together(attention: Attention) -> None:
    together = Scene(3, [(5, 9)], [3, 40, 17, 18], 4).run(0, attention)
    scene = Scene(3, [(5, 9)], [3, 40, 17, 18], 4)
    scene.run(0)
    backend = attention(scene.cache)
    whole = scene.context(
        [length - count for length, count in zip(scene.contexts, scene.counts, strict=True)]
    )
    for row in range(1, 5):
        context = replace(
            whole,
            slot_mapping=scene.slots[row][-1:],
            decode_rows=torch.tensor([row], dtype=torch.int32),
            prefill_rows=whole.prefill_rows[:0],
            prefill_starts=whole.prefill_starts[:1],
        )
        assert torch.equal(backend.attend(0, scene.queries[row], context), together[row])


@each_attention
def test_padding_has_no_effect_and_stays_finite(attention: Attention) -> None:
    """Decode rows of length 0 where prefills have their tokens, empty prefills, and tokens past the last prefill."""
    plain, padded = (Scene(5, [(5, 9), (0, 3)], [3, 40], 4) for _ in range(2))
    expected = plain.run(0, attention)
    padded.run(0, attention)
    for tensor in (padded.cache.keys[0], padded.cache.values[0]):
        tensor[0] = 0.0
    befores = [length - count for length, count in zip(padded.contexts, padded.counts, strict=True)]
    whole, ints = padded.context(befores), partial(torch.tensor, dtype=torch.int32)
    dummy = len(padded.contexts)
    context = replace(
        whole,
        block_tables=torch.cat((whole.block_tables, torch.zeros_like(whole.block_tables[:1]))),
        lengths=ints([*befores, 0]),
        decode_rows=ints([2, 3, dummy, dummy]),
        prefill_rows=ints([0, 1, dummy, dummy]),
        prefill_starts=ints([2, 11, 14, 14, 14]),
    )
    queries, padding = padded.queries, torch.randn(2, *padded.queries[0].shape[1:])
    query = torch.cat((queries[2], queries[3], queries[0], queries[1], padding))
    output = attention(padded.cache).attend(0, query, context)
    torch.testing.assert_close(output[:2], torch.cat(expected[2:]))
    torch.testing.assert_close(output[2:14], torch.cat(expected[:2]))
    assert output.isfinite().all()


@each_attention
def test_bounds_of_scratch_memory_change_no_number(
    attention: Attention, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Scene(4, [(5, 30), (0, 12)], [9, 9, 9, 30], 4).run(0, attention)
    monkeypatch.setattr(reference_module, "_MAX_GATHERED_TOKENS", 20)
    monkeypatch.setattr(reference_module, "_MAX_SCORES", 200)
    monkeypatch.setattr(sdpa_module, "_MAX_PAIRS", 200)
    sliced_rows = Scene(4, [(5, 30), (0, 12)], [9, 9, 9, 30], 4).run(0, attention)
    for sliced, row in zip(sliced_rows, whole, strict=True):
        torch.testing.assert_close(sliced, row)


@each_attention
def test_rows_of_one_step_share_a_block_that_the_step_fills(attention: Attention) -> None:
    config = model_config(1, 1, 4)
    cache = KVCache(config, 4, 2, torch.float32, torch.device("cpu"))
    query, key, value = torch.randn(4, 1, 4), torch.randn(4, 1, 4), torch.randn(4, 1, 4)
    # The reader of block 2 comes first in the batch, its filler second.
    cache.write(0, key, value, torch.tensor([6, 4, 5, 2]))
    context = AttentionContext(
        slot_mapping=torch.tensor([6, 4, 5, 2]),
        block_tables=torch.tensor([[2, 3], [2, 1]], dtype=torch.int32),
        lengths=torch.tensor([2, 0], dtype=torch.int32),
        decode_rows=torch.empty(0, dtype=torch.int32),
        prefill_rows=torch.tensor([0, 1], dtype=torch.int32),
        prefill_starts=torch.tensor([0, 1, 4], dtype=torch.int32),
    )
    output = attention(cache).attend(0, query, context)
    order = [1, 2, 0]
    weights = (key[order, 0] @ query[0, 0] / 2).softmax(0)
    torch.testing.assert_close(output[0, 0], weights @ value[order, 0])


@given(st.lists(st.integers(1, 5000), min_size=1), st.integers(1, 32))
def test_padding_of_a_row_covers_it_and_at_most_doubles_it(lens: list[int], block_size: int) -> None:
    widths = padded_num_blocks(np.array(lens, np.int32), block_size, 10**6)
    for length, width in zip(lens, widths.tolist(), strict=True):
        needed = -(-length // block_size)
        assert needed <= width < 2 * needed or width == needed == 1
        assert width & (width - 1) == 0
    assert padded_num_blocks(np.array(lens, np.int32), block_size, 3).max() <= 3


def test_block_zero_is_finite_from_the_start() -> None:
    cache = KVCache(model_config(1, 1, 4), 4, 2, torch.bfloat16, torch.device("cpu"))
    assert all(tensor[0].isfinite().all() for tensor in (*cache.keys, *cache.values))


def test_default_number_of_blocks_is_bounded_by_use_and_by_memory() -> None:
    assert cpu_num_blocks(1024, 1000) == 1000
    assert cpu_num_blocks(2**20, 10**9) <= 2048
    with pytest.raises(ValueError, match="--num-kv-blocks"):
        cpu_num_blocks(2**50, 1000)


def test_triton_is_refused_by_its_flag_where_it_cannot_run_and_auto_does_without() -> None:
    cache = KVCache(model_config(1, 1, 4), 2, 2, torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match="--attention-backend: triton needs a CUDA device"):
        make_backend("triton", cache)
    assert isinstance(make_backend("auto", cache).attention, SdpaAttention)
    assert isinstance(make_backend("reference", cache).attention, ReferenceAttention)


def test_sdpa_keeps_no_mask_of_a_prefill() -> None:
    """There are as many pairs as tokens times their context."""
    scene = Scene(8, [(100, 40)], [], 4)
    scene.run(0)
    backend = SdpaAttention(scene.cache)
    backend.attend(0, scene.queries[0], scene.context([100]))
    kept = [getattr(group, name) for group in backend._groups for name in ("slots", "held")]
    assert sum(tensor.numel() for tensor in kept if tensor is not None) == 140


def test_sdpa_works_out_anew_what_a_new_pass_has_in_common() -> None:
    """A row that grows, in the same tensors: nothing of the pass before may be used."""
    scene = Scene(6, [], [7, 21], 4)
    scene.run(0)
    backend, query = SdpaAttention(scene.cache), torch.cat(scene.queries)
    shorter = scene.context([3, 20])
    backend.attend(0, query, shorter)
    shorter.lengths.copy_(torch.tensor([6, 20]))
    grown = replace(shorter)
    expected = ReferenceAttention(scene.cache).attend(0, query, grown)
    torch.testing.assert_close(backend.attend(0, query, grown), expected)


@gpu
def test_cuda_gives_the_cpu_s_numbers() -> None:
    rows = [(0, 50), (37, 20)], [1, 9, 64, 33]
    for seed in range(5):
        on_cuda, on_cpu = Scene(seed, *rows, 4, "cuda").run(1), Scene(seed, *rows, 4).run(1)
        for ours, theirs in zip(on_cuda, on_cpu, strict=True):
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-5)
