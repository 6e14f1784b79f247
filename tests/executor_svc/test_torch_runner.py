"""TorchRunner as the session sees it: launched steps, their order, their failures, and rows that keep apart."""

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import gpu
from torch_harness import (
    VOCAB_SIZE,
    Hand,
    generate_alone,
    kv_cache_of,
    make_runner,
    random_tokens,
    save_checkpoint,
)

from executor_svc.build import build_torch_runner, choose_dtype
from executor_svc.config import ExecutorConfig
from executor_svc.logprobs import MAX_PROMPT_SLICE
from executor_svc.models.config import read_model_config
from executor_svc.plan import ErrorCode, RowSampling, RowStatus, StepFailure
from executor_svc.torch_runner import TorchRunner, as_step_failure
from nanoserve.checkpoint import CheckpointError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3")
    save_checkpoint(folder, "Qwen3", num_hidden_layers=1)
    return folder


@pytest.fixture(scope="module")
def shared_runner(checkpoint: Path) -> Iterator[TorchRunner]:
    runner = make_runner(checkpoint)
    yield runner
    runner.close()


@pytest.fixture
def runner(shared_runner: TorchRunner) -> TorchRunner:
    """A runner with clear rows."""
    shared_runner.reset()
    return shared_runner


@pytest.fixture
def gate(runner: TorchRunner, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Steps run only once it is set."""
    opened, forward = threading.Event(), runner.model_runner.run

    def wait_and_run(*arguments: Any) -> Any:
        opened.wait()
        return forward(*arguments)

    monkeypatch.setattr(runner.model_runner, "run", wait_and_run)
    return opened


def prompts_of(seed: int, *lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [random_tokens(rng, length) for length in lengths]


SAMPLINGS = [
    RowSampling(),
    RowSampling(temperature=1.0),
    RowSampling(temperature=0.8, top_p=0.9, frequency_penalty=0.5),
    RowSampling(repetition_penalty=1.3, logprobs=2),
    RowSampling(temperature=1.2, top_k=10, min_tokens=3, end_token_ids=np.array([5, 6], np.int32)),
]


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_any_mixture_sample_what_they_sample_alone(runner: TorchRunner, seed: int) -> None:
    rng = np.random.default_rng(seed)
    prompts = [random_tokens(rng, int(rng.integers(1, 40))) for _ in SAMPLINGS]
    alone = [
        generate_alone(runner, p, 12, s, i) for i, (p, s) in enumerate(zip(prompts, SAMPLINGS, strict=True))
    ]
    runner.reset()
    hand = Hand(runner, seed)
    for row, (prompt, sampling) in enumerate(zip(prompts, SAMPLINGS, strict=True)):
        hand.start(row, prompt, sampling, seed=row)
        hand.prefill(row, int(rng.integers(1, 40)))
        if rng.random() < 0.5:
            hand.run()
            for earlier in range(row):
                state = hand.rows[earlier]
                if len(state.token_ids) > len(prompts[earlier]):
                    hand.decode(earlier)
    hand.run()
    while min(len(hand.rows[row].token_ids) - len(prompts[row]) for row in range(len(prompts))) < 12:
        prefilling = [r for r in range(len(prompts)) if hand.rows[r].length < len(prompts[r])]
        for row in prefilling:
            hand.prefill(row, int(rng.integers(1, 9)))
        for row in set(range(len(prompts))) - set(prefilling):
            hand.decode(row, 1 if prefilling else int(rng.integers(1, 4)))
        hand.run()
    for row, prompt in enumerate(prompts):
        assert hand.rows[row].token_ids[len(prompt) : len(prompt) + 12] == alone[row]


def test_a_sequence_started_again_with_its_output_goes_on_as_if_never_stopped(runner: TorchRunner) -> None:
    (prompt,) = prompts_of(1, 21)
    sampling = RowSampling(temperature=1.0, presence_penalty=1.0, repetition_penalty=1.2)
    whole = generate_alone(runner, prompt, 16, sampling, seed=9)
    runner.reset()
    hand = Hand(runner, 3)
    hand.start(4, prompt + whole[:7], sampling, seed=9, num_prompt_tokens=len(prompt))
    hand.prefill(4, 11)
    hand.run()
    hand.prefill(4)
    hand.run()
    for _ in range(2):
        hand.decode(4, 4)
        hand.run()
    assert hand.rows[4].token_ids[len(prompt) :] == whole


def test_a_freed_block_full_of_nan_and_given_out_again_harms_nobody(runner: TorchRunner) -> None:
    first, second, third = prompts_of(4, 30, 18, 26)
    expected = generate_alone(runner, third, 6, RowSampling())
    runner.reset()
    hand = Hand(runner, 4)
    hand.start(0, first)
    hand.start(1, second)
    hand.prefill(0)
    hand.prefill(1)
    hand.run()
    old_blocks = set(hand.rows[0].table)
    hand.release(0)
    hand.run()  # its blocks are poisoned now
    hand.start(0, third)
    assert old_blocks & set(hand.rows[0].table)
    hand.prefill(0)
    hand.run()
    for _ in range(5):
        hand.decode(0)
        hand.decode(1)
        hand.run()
    assert hand.rows[0].token_ids[len(third) :] == expected


def test_one_plan_may_release_and_start_the_same_row(runner: TorchRunner) -> None:
    first, second = prompts_of(5, 9, 14)
    expected = generate_alone(runner, second, 3, RowSampling())
    runner.reset()
    hand = Hand(runner, 5)
    hand.start(2, first, RowSampling(temperature=1.0, presence_penalty=2.0))
    hand.prefill(2)
    hand.run()
    hand.release(2)
    hand.start(2, second)
    hand.prefill(2)
    hand.run()
    for _ in range(2):
        hand.decode(2)
        hand.run()
    assert hand.rows[2].token_ids[len(second) :] == expected


def test_rows_answer_in_the_plan_s_order_and_only_while_they_have_steps_left(runner: TorchRunner) -> None:
    hand = Hand(runner, 6)
    for row, prompt in zip((3, 1, 5, 0), prompts_of(6, 5, 6, 7, 9), strict=True):
        hand.start(row, prompt)
    for row, count in ((5, None), (0, 4), (3, None), (1, None)):
        hand.prefill(row, count)
    (output,) = hand.run()
    assert output.rows.tolist() == [5, 3, 1]
    hand.decode(1)
    hand.prefill(0)
    hand.decode(5)
    (output,) = hand.run()
    assert output.rows.tolist() == [0, 1, 5]
    for row, steps in ((1, 3), (5, 1), (0, 4), (3, 2)):
        hand.decode(row, steps)
    outputs = hand.run()
    assert [output.rows.tolist() for output in outputs] == [[1, 5, 0, 3], [1, 0, 3], [1, 0], [0]]


def test_several_decode_steps_a_plan_sample_what_single_ones_do(runner: TorchRunner) -> None:
    (prompt,) = prompts_of(7, 12)
    sampling = RowSampling(temperature=1.0, frequency_penalty=0.4, logprobs=0)
    expected = generate_alone(runner, prompt, 17, sampling, seed=3)
    runner.reset()
    hand = Hand(runner, 7)
    hand.start(0, prompt, sampling, seed=3)
    hand.prefill(0)
    hand.run()
    for steps in (8, 5, 3):
        hand.decode(0, steps)
        assert all(len(output.logprobs) == 1 for output in hand.run())
    assert hand.rows[0].token_ids[len(prompt) :] == expected


def test_launch_returns_while_earlier_steps_have_not_run(runner: TorchRunner, gate: threading.Event) -> None:
    (prompt,) = prompts_of(8, 10)
    hand = Hand(runner, 8)
    hand.start(0, prompt)
    hand.prefill(0)
    launched = [hand.launch()]
    for _ in range(3):
        hand.decode(0)
        launched.append(hand.launch())
    assert not any(output.done() for _, pending in launched for output in pending.outputs)
    gate.set()
    for step in launched:
        hand.finish(step)
    assert hand.rows[0].token_ids[len(prompt) :] == generate_alone(runner, prompt, 4, RowSampling())


def test_steps_behind_a_failed_one_fail_unrun_until_reset(
    runner: TorchRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, forward = [], runner.model_runner.run

    def fail_third(step: Any, sub_step: int) -> Any:
        ran.append((step.plan.step_id, sub_step))
        if len(ran) == 3:
            raise RuntimeError("a fault\nof many lines")
        return forward(step, sub_step)

    monkeypatch.setattr(runner.model_runner, "run", fail_third)
    hand = Hand(runner, 9)
    hand.start(0, [1, 2, 3])
    hand.prefill(0)
    hand.run()
    hand.decode(0, 4)
    _, failing = hand.launch()
    hand.decode(0)
    _, behind = hand.launch()
    failing.wait(0)
    for pending, sub_steps in ((failing, (1, 2, 3)), (behind, (0,))):
        for sub_step in sub_steps:
            with pytest.raises(StepFailure, match=r"RuntimeError: a fault$") as caught:
                pending.wait(sub_step)
            assert caught.value.code == ErrorCode.INTERNAL
    assert ran == [(1, 0), (2, 0), (2, 1)]
    runner.reset()
    hand = Hand(runner, 9)
    hand.start(0, [1, 2, 3])
    hand.prefill(0)
    hand.run()


def test_out_of_memory_is_told_apart() -> None:
    shortages: list[Exception] = [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()]
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    shortages.append(caught.value)
    for error in shortages:
        assert as_step_failure(error, 1).code == ErrorCode.RESOURCE_EXHAUSTED
    assert as_step_failure(ValueError("x"), 1).code == ErrorCode.INTERNAL


@pytest.mark.parametrize(
    "sampling", [RowSampling(), RowSampling(temperature=1.0, logprobs=1, report_gap=True)]
)
def test_a_row_whose_cache_is_nan_fails_alone(runner: TorchRunner, sampling: RowSampling) -> None:
    first, second = prompts_of(10, 9, 13)
    expected = generate_alone(runner, second, 4, sampling)
    runner.reset()
    hand = Hand(runner, 10)
    for row, prompt in enumerate((first, second)):
        hand.start(row, prompt, sampling)
        hand.prefill(row)
    hand.run()
    hand.poison(hand.rows[0].table)
    for _ in range(3):
        hand.decode(0)
        hand.decode(1)
        (output,) = hand.run()
        assert output.rows.tolist() == [0, 1]
        assert output.row_statuses.tolist() == [RowStatus.NON_FINITE_LOGITS, RowStatus.OK]
        assert output.token_ids[0] == -1
        assert [entry.row for entry in output.logprobs] == ([1] if sampling.logprobs else [])
        if sampling.report_gap:
            assert np.isnan(output.gaps).tolist() == [True, False]
    assert hand.rows[1].token_ids[len(second) :] == expected
    held = runner.model_runner.state.token_ids[0]
    assert 0 <= int(held.min()) <= int(held.max()) < VOCAB_SIZE


def test_masks_bind_their_row_for_their_plan_only(runner: TorchRunner) -> None:
    hand = Hand(runner, 11)
    for row, prompt in enumerate(prompts_of(11, 6, 7)):
        hand.start(row, prompt, RowSampling(temperature=1.0), seed=row)
        hand.prefill(row)
    hand.mask(1, [17])
    (output,) = hand.run()
    assert output.token_ids[1] == 17
    hand.decode(0)
    hand.decode(1)
    hand.mask(0, [3, 4])
    hand.mask(1, [])
    (output,) = hand.run()
    assert output.token_ids[0] in (3, 4)
    assert output.row_statuses.tolist() == [RowStatus.OK, RowStatus.NO_TOKEN_ALLOWED]


def test_gaps_are_reported_where_asked(runner: TorchRunner) -> None:
    hand = Hand(runner, 12)
    for row, prompt in enumerate(prompts_of(12, 6, 7)):
        hand.start(row, prompt, RowSampling(report_gap=row == 1, logprobs=2))
        hand.prefill(row)
    (output,) = hand.run()
    assert np.isnan(output.gaps).tolist() == [True, False]
    best = output.logprobs[1].alternative_logprobs
    assert output.gaps[1] == pytest.approx(best[0] - best[1], abs=1e-5)
    hand.decode(0)
    assert hand.run()[0].gaps.tolist() == []


@pytest.mark.parametrize("chunks", [[600], [256, 344], [1, 255, 1, 300, 43]])
def test_prompt_logprobs_come_in_slices_and_do_not_depend_on_the_chunks(
    chunks: list[int], tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, "Qwen3", num_hidden_layers=1, max_position_embeddings=1024)
    runner = make_runner(tmp_path, max_model_len=700, max_num_batched_tokens=700, num_kv_blocks=400)
    try:
        rng = np.random.default_rng(13)
        prompt, output_tokens = random_tokens(rng, 595), random_tokens(rng, 5)
        hand = Hand(runner, 13)
        # The last five known tokens are output: none of the prompt's log-probabilities is theirs.
        hand.start(0, prompt + output_tokens, RowSampling(prompt_logprobs=1), num_prompt_tokens=595)
        parts = []
        for chunk in chunks:
            hand.prefill(0, chunk)
            (output,) = hand.run()
            parts.extend(output.prompt_logprobs)
        whole = Hand(runner, 14)
        runner.reset()
        whole.start(0, [*prompt, 0], RowSampling(prompt_logprobs=1), num_prompt_tokens=595)
        whole.prefill(0)
        (expected,) = whole.run()
    finally:
        runner.close()
    assert max(len(part.token_logprobs) for part in parts) <= MAX_PROMPT_SLICE
    assert [p.first_position + i for p in parts for i in range(len(p.token_logprobs))] == list(range(1, 595))
    for name in ("token_logprobs", "alternative_logprobs"):
        ours = np.concatenate([getattr(part, name) for part in parts])
        theirs = np.concatenate([getattr(part, name) for part in expected.prompt_logprobs])
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_sequence_may_fill_the_model_s_whole_length(runner: TorchRunner) -> None:
    (prompt,) = prompts_of(15, 254)
    hand = Hand(runner, 15)
    hand.start(7, prompt)
    hand.prefill(7)
    hand.run()
    hand.decode(7)
    (output,) = hand.run()
    assert output.row_statuses.tolist() == [RowStatus.OK]
    assert len(hand.rows[7].token_ids) == 256
    assert runner.model_runner.state.token_ids[7].tolist() == hand.rows[7].token_ids


def test_alternatives_are_as_many_as_each_row_asked_for(runner: TorchRunner) -> None:
    hand = Hand(runner, 20)
    asked = [2, None, 0, 5]
    for row, (count, prompt) in enumerate(zip(asked, prompts_of(20, 4, 5, 6, 7), strict=True)):
        hand.start(row, prompt, RowSampling(logprobs=count))
        hand.prefill(row)
    (output,) = hand.run()
    assert [entry.row for entry in output.logprobs] == [0, 2, 3]
    for entry, count in zip(output.logprobs, (2, 0, 5), strict=True):
        assert len(entry.alternative_ids) == len(entry.alternative_logprobs) == count


def test_block_zero_is_never_written(runner: TorchRunner) -> None:
    cache = kv_cache_of(runner)
    assert all((tensor[0] == 0).all() for tensor in (*cache.keys, *cache.values))


def test_times_are_told_and_the_first_step_has_no_idle_time_before_it(runner: TorchRunner) -> None:
    hand = Hand(runner, 16)
    hand.start(0, [1, 2, 3])
    hand.prefill(0)
    (first,) = hand.run()
    hand.decode(0)
    (second,) = hand.run()
    assert first.idle_ns == 0
    assert first.device_ns > 0
    assert second.idle_ns > 0


def test_limits_device_and_dtype_are_those_of_the_model_and_the_flags(checkpoint: Path) -> None:
    runner = make_runner(checkpoint, max_model_len=None, num_kv_blocks=None, max_num_decode_steps=3)
    runner.close()
    limits = runner.limits
    assert (runner.device, runner.dtype) == ("cpu", "float32")
    assert (limits.max_model_len, limits.vocab_size, limits.max_num_decode_steps) == (512, VOCAB_SIZE, 3)
    assert limits.num_blocks == 8 * 512 // 4 + 1


def test_dummy_weights_need_no_safetensors(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    tokens = []
    for seed in (5, 5, 6):
        runner = make_runner(tmp_path, load_format="dummy", seed=seed)
        tokens.append(generate_alone(runner, [1, 2, 3], 8, RowSampling(temperature=0.05)))
        runner.close()
    assert tokens[0] == tokens[1] != tokens[2]


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"max_model_len": 513}, "--max-model-len"),
        ({"num_kv_blocks": 2**50}, "--num-kv-blocks"),
    ],
)
def test_what_cannot_be_had_is_refused_by_its_flag(
    checkpoint: Path, changes: dict[str, Any], flag: str
) -> None:
    with pytest.raises(ValueError, match=f"^{flag}: "):
        build_torch_runner(ExecutorConfig(device="cpu", **changes), checkpoint)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_refused_where_there_is_none(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"^--device: "):
        build_torch_runner(ExecutorConfig(device="cuda"), checkpoint)


def test_dtype_auto_is_float32_on_a_cpu_and_the_checkpoint_s_own_elsewhere(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "Qwen2", dtype=torch.bfloat16)
    config = read_model_config(tmp_path)
    assert choose_dtype("auto", config, tmp_path, torch.device("cpu")) == torch.float32
    assert choose_dtype("auto", config, tmp_path, torch.device("cuda")) == torch.bfloat16
    assert choose_dtype("bfloat16", config, tmp_path, torch.device("cpu")) == torch.bfloat16


def test_a_float16_checkpoint_is_refused_unless_another_dtype_is_given(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "Qwen2", dtype=torch.float16)
    config = read_model_config(tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json: dtype: float16 is not served"):
        choose_dtype("auto", config, tmp_path, torch.device("cuda"))
    runner = make_runner(tmp_path, dtype="bfloat16")
    runner.close()
    assert runner.dtype == "bfloat16"


@gpu
@pytest.mark.parametrize("sampling", [RowSampling(), RowSampling(temperature=0.8, top_k=20)])
def test_cuda_samples_the_tokens_that_the_cpu_does(checkpoint: Path, sampling: RowSampling) -> None:
    prompts = prompts_of(17, 3, 40, 90)
    tokens = []
    for device in ("cpu", "cuda"):
        runner = make_runner(checkpoint, device=device)
        assert runner.device == ("cpu" if device == "cpu" else "cuda:0")
        hand = Hand(runner, 17)
        for row, prompt in enumerate(prompts):
            hand.start(row, prompt, sampling, seed=row)
            hand.prefill(row)
        hand.run()
        for _ in range(8):
            for row in range(len(prompts)):
                hand.decode(row, 4)
            hand.run()
        tokens.append([hand.rows[row].token_ids for row in range(len(prompts))])
        runner.close()
    assert tokens[0] == tokens[1]


@gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cuda_logprobs_agree_with_the_cpu(checkpoint: Path, dtype: str) -> None:
    (prompt,) = prompts_of(18, 200)
    judged = []
    for device in ("cpu", "cuda"):
        runner = make_runner(checkpoint, device=device, dtype=dtype)
        hand = Hand(runner, 18)
        hand.start(0, prompt, RowSampling(prompt_logprobs=0))
        hand.prefill(0)
        judged.append(hand.run()[0].prompt_logprobs[0].token_logprobs)
        runner.close()
    np.testing.assert_allclose(judged[0], judged[1], atol=1e-4 if dtype == "float32" else 0.5)


@gpu
def test_cuda_takes_its_number_of_blocks_from_free_memory(checkpoint: Path) -> None:
    gc.collect()  # runners of other tests
    runner = make_runner(checkpoint, device="cuda", num_kv_blocks=None, gpu_memory_utilization=0.9)
    runner.close()
    assert runner.limits.num_blocks == 8 * 256 // 4 + 1
