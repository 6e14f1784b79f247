import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from executor_plans import TINY, Planner, ints, make_plan, make_start
from hypothesis import given, settings
from hypothesis import strategies as st

from executor_svc.config import ExecutorConfig
from executor_svc.models.config import read_model_config
from executor_svc.plan import ErrorCode, Prefill, RowMask, RowSampling, RowStatus, Step, StepFailure, StepPlan
from executor_svc.row_table import RowTable
from executor_svc.virtual import (
    CostModel,
    InstantClock,
    RunnerHooks,
    VirtualExecutor,
    VirtualModel,
    VirtualRunner,
    virtual_token,
    virtual_tokens,
)
from executor_svc.virtual.build import build_virtual_runner
from nanoserve.checkpoint import CheckpointError

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5]


def expect_data_loss(executor: VirtualExecutor, plan: StepPlan, *words: str) -> None:
    with pytest.raises(StepFailure) as caught:
        executor.apply(plan)
    assert caught.value.code is ErrorCode.DATA_LOSS
    for word in words:
        assert word in caught.value.description


def prefilled(
    step_id: int, row: int, prompt: Sequence[int], blocks: Sequence[int], computed: int = 0
) -> StepPlan:
    start = make_start(row, prompt, blocks, num_computed_tokens=computed)
    run = Prefill(row, computed, len(prompt) - computed, True)
    return make_plan(step_id, starts=(start,), prefills=(run,))


def test_the_documented_function_gives_the_tokens() -> None:
    # Computed by hand from the formula of tokens.py, in plain integers.
    def mix(value: int) -> int:
        value = (value + 0x9E3779B97F4A7C15) % 2**64
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        return value ^ value >> 31

    for seed, position, vocab_size in ((0, 0, 2), (2**64 - 1, 7, 151936), (12345, 40959, 1000)):
        expected = (mix((mix(seed) + position * 0x9E3779B97F4A7C15) % 2**64) >> 32) * vocab_size >> 32
        assert virtual_token(seed, position, vocab_size) == expected


def test_tokens_cover_the_vocabulary_evenly() -> None:
    tokens = virtual_tokens(np.arange(100_000, dtype=np.uint64), np.zeros(100_000, np.int32), 10)
    assert np.all(np.abs(np.bincount(tokens, minlength=10) - 10_000) < 500)


def test_an_end_token_comes_as_often_as_asked_and_never_otherwise() -> None:
    seeds, positions = np.arange(50_000, dtype=np.uint64), np.ones(50_000, np.int32)
    rare = VirtualModel(10, end_token_id=9, end_probability=0.02).tokens(seeds, positions)
    never = VirtualModel(10, end_token_id=9).tokens(seeds, positions)
    assert 0.015 < (rare == 9).mean() < 0.025
    assert not (never == 9).any()
    assert VirtualModel(10, end_token_id=9).token(7, 1) == never[7]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_correct_planner_reads_only_what_was_written_and_gets_the_right_tokens(seed: int) -> None:
    planner, executor = Planner(random.Random(seed)), VirtualExecutor(TINY)
    for _ in range(60):
        plan = planner.next_plan()
        outputs = executor.apply(plan)
        assert len(outputs) == plan.num_decode_steps
        sampled: dict[int, list[int]] = {}
        for output in outputs:
            for row, token in zip(output.rows.tolist(), output.token_ids.tolist(), strict=True):
                sampled.setdefault(row, []).append(token)
        expected = {row: 1 for row in (entry.row for entry in plan.prefills if entry.samples)}
        expected |= dict(zip(plan.decode_rows.tolist(), plan.decode_row_steps.tolist(), strict=True))
        assert {row: len(tokens) for row, tokens in sampled.items()} == expected
        for row, tokens in sampled.items():
            assert planner.all_tokens(planner.rows[row])[-len(tokens) :] == tokens


def test_a_hit_on_a_block_never_written_is_found() -> None:
    executor = VirtualExecutor(TINY)
    expect_data_loss(
        executor, prefilled(1, 2, PROMPT, [5, 6, 7], computed=8), "row 2", "position 0", "block 5", "poison"
    )


def test_a_hit_on_a_block_of_other_tokens_is_found() -> None:
    executor = VirtualExecutor(TINY)
    executor.apply(prefilled(1, 0, PROMPT, [1, 2, 3]))
    other = [*PROMPT[:6], 8, *PROMPT[7:]]
    expect_data_loss(
        executor, prefilled(2, 1, other, [1, 2, 4], computed=8), "row 1", "position 6", "block 2"
    )


def test_a_block_of_the_right_tokens_after_another_prefix_is_found() -> None:
    executor = VirtualExecutor(TINY)
    executor.apply(prefilled(1, 0, [1, 1, 1, 1, *PROMPT], [1, 2, 3, 4]))
    executor.apply(prefilled(2, 1, [2, 2, 2, 2, *PROMPT], [5, 6, 7, 8]))
    mixed = prefilled(3, 2, [2, 2, 2, 2, *PROMPT], [5, 2, 9, 10], computed=8)
    expect_data_loss(executor, mixed, "row 2", "position 4", "block 2")


def test_a_prefix_that_the_same_step_fills_is_read_after_it_is_written() -> None:
    executor = VirtualExecutor(TINY)
    writer = make_start(0, PROMPT, [1, 2, 3])
    reader = make_start(1, PROMPT, [1, 2, 4], num_computed_tokens=8)
    # The reader computes first in the plan's order.
    runs = (Prefill(1, 8, 1, True), Prefill(0, 0, 9, True))
    executor.apply(make_plan(1, starts=(writer, reader), prefills=runs))


def test_a_prefix_whose_writer_is_not_there_yet_is_found() -> None:
    executor = VirtualExecutor(TINY)
    writer = make_start(0, PROMPT, [1, 2, 3])
    reader = make_start(1, PROMPT, [1, 2, 4], num_computed_tokens=8)
    runs = (Prefill(0, 0, 5, False), Prefill(1, 8, 1, True))
    expect_data_loss(
        executor, make_plan(1, starts=(writer, reader), prefills=runs), "row 1", "position 5", "block 2"
    )


def test_a_cached_block_survives_its_row_but_not_its_next_owner() -> None:
    executor = VirtualExecutor(TINY)
    executor.apply(prefilled(1, 0, PROMPT, [1, 2, 3]))
    executor.apply(replace(prefilled(2, 0, PROMPT, [1, 2, 4], computed=8), release_rows=ints(0)))
    executor.apply(make_plan(3, release_rows=ints(0), starts=(make_start(1, PROMPT, [2]),)))
    hit = prefilled(4, 0, PROMPT, [1, 2, 4], computed=8)
    expect_data_loss(executor, hit, "row 0", "position 4", "block 2", "poison")


def test_a_block_that_was_not_full_when_its_row_left_holds_nothing() -> None:
    executor = VirtualExecutor(TINY)
    executor.apply(prefilled(1, 0, PROMPT[:7], [1, 2]))
    tokens = [*PROMPT[:7], virtual_token(0, 7, TINY.vocab_size), 1]
    hit = replace(prefilled(2, 0, tokens, [1, 2, 3], computed=8), release_rows=ints(0))
    expect_data_loss(executor, hit, "position 4", "block 2", "poison")


def test_a_new_session_finds_the_cache_of_its_instance_and_a_new_instance_none() -> None:
    executor = VirtualExecutor(TINY)
    executor.apply(prefilled(1, 0, PROMPT, [1, 2, 3]))
    executor.reset()
    executor.apply(prefilled(1, 1, PROMPT, [1, 2, 3], computed=8))
    assert (executor.epoch, executor.instance) == (2, 1)
    executor.reset(keep_kv=False)
    assert (executor.epoch, executor.instance) == (3, 2)
    expect_data_loss(executor, prefilled(1, 1, PROMPT, [1, 2, 3], computed=8), "poison")


def test_after_a_failure_everything_fails_until_the_next_session() -> None:
    executor = VirtualExecutor(TINY)
    executor.fail_step(2)
    executor.apply(prefilled(1, 0, PROMPT, [1, 2, 3]))
    for plan in (make_plan(2, decode_rows=ints(0)), make_plan(3)):
        with pytest.raises(StepFailure) as caught:
            executor.apply(plan)
        assert caught.value.code is ErrorCode.INTERNAL
    executor.reset()
    executor.apply(prefilled(1, 0, PROMPT, [1, 2, 3]))
    executor.apply(make_plan(2, decode_rows=ints(0)))


def test_a_masked_row_samples_what_is_allowed_and_the_others_stand() -> None:
    executor = VirtualExecutor(TINY)
    for row in range(3):
        executor.apply(prefilled(row + 1, row, PROMPT, [1 + 3 * row, 2 + 3 * row, 3 + 3 * row]))
    only, none = np.zeros(TINY.vocab_size, np.bool_), np.zeros(TINY.vocab_size, np.bool_)
    only[17] = True
    plan = make_plan(4, decode_rows=ints(2, 1, 0), masks=(RowMask.of(1, only), RowMask.of(2, none)))
    (output,) = executor.apply(plan)
    assert output.token_ids.tolist() == [-1, 17, virtual_token(0, 10, TINY.vocab_size)]
    assert output.row_statuses.tolist() == [RowStatus.NO_TOKEN_ALLOWED, RowStatus.OK, RowStatus.OK]
    # Even the row that failed can be advanced: its results are dropped, its reads still checked.
    executor.apply(make_plan(5, decode_rows=ints(0, 1, 2)))


def test_no_end_token_comes_before_min_tokens() -> None:
    model = VirtualModel(TINY.vocab_size, end_token_id=0, end_probability=1.0)
    executor = VirtualExecutor(TINY, model)
    sampling = RowSampling(min_tokens=2, end_token_ids=ints(0, 1))
    start = make_start(0, PROMPT, [1, 2, 3], sampling=sampling)
    outputs = executor.apply(make_plan(1, starts=(start,), prefills=(Prefill(0, 0, 9, True),)))
    outputs += executor.apply(make_plan(2, decode_rows=ints(0), num_decode_steps=3))
    assert [output.token_ids.tolist() for output in outputs] == [[2], [2], [0], [0]]


def test_logprobs_have_the_shapes_of_the_contract() -> None:
    executor = VirtualExecutor(replace(TINY, num_blocks=200, max_model_len=600, max_num_batched_tokens=600))
    sampling = RowSampling(logprobs=3, prompt_logprobs=2, report_gap=True)
    asking = make_start(0, [7] * 500, range(1, 127), num_prompt_tokens=450, sampling=sampling)
    plain = make_start(1, PROMPT, [130, 131, 132])
    runs = (Prefill(1, 0, 9, True), Prefill(0, 0, 300, False))
    (first,) = executor.apply(make_plan(1, starts=(asking, plain), prefills=runs))
    (second,) = executor.apply(make_plan(2, prefills=(Prefill(0, 300, 200, True),), decode_rows=ints(1)))
    assert not first.logprobs
    slices = [*first.prompt_logprobs, *second.prompt_logprobs]
    # Positions 1 to 449: the logits at 299 judge 300, and no output token is judged.
    assert [(entry.first_position, len(entry.token_logprobs)) for entry in slices] == [
        (1, 256),
        (257, 44),
        (301, 149),
    ]
    for entry in slices:
        assert entry.alternative_ids.shape == entry.alternative_logprobs.shape == (len(entry.token_ranks), 2)
    (logprobs,) = second.logprobs
    assert (logprobs.row, len(logprobs.alternative_ids), logprobs.alternative_ids[0]) == (
        0,
        3,
        second.token_ids[0],
    )
    assert np.isnan(second.gaps).tolist() == [False, True]


def launch_steps(runner: VirtualRunner, *plans: StepPlan) -> list[Step]:
    table = RowTable(runner.limits)
    return [table.apply(plan) for plan in plans]


def test_steps_are_serial_on_the_device_and_its_idle_time_is_counted() -> None:
    clock = InstantClock()
    runner = VirtualRunner(TINY, cost=CostModel(1000, 10, 1), clock=clock)
    steps = launch_steps(
        runner,
        prefilled(1, 0, PROMPT, [1, 2, 3, 4]),
        make_plan(2, decode_rows=ints(0), num_decode_steps=2),
        make_plan(3, decode_rows=ints(0)),
    )
    first, second = runner.launch(steps[0]), runner.launch(steps[1])
    output = first.wait(0)
    assert (output.device_ns, output.idle_ns, clock.now_ns()) == (1000 + 90 + 9, 0, 1099)
    # The second was queued while the first ran: no idle time; its sub-steps read 10 and 11 tokens.
    timings = [(output.device_ns, output.idle_ns) for output in (second.wait(0), second.wait(1))]
    assert timings == [(1020, 0), (1021, 0)]
    assert clock.now_ns() == 1099 + 1020 + 1021
    clock.advance_ns(500)
    assert runner.launch(steps[2]).wait(0).idle_ns == 500


def test_a_step_behind_a_failed_one_fails_unrun_until_reset() -> None:
    failing = StepFailure(ErrorCode.RESOURCE_EXHAUSTED, "out of memory")

    def fail_second(step_id: int) -> None:
        if step_id == 2:
            raise failing

    runner = VirtualRunner(TINY, clock=InstantClock(), hooks=RunnerHooks(before_result=fail_second))
    plans = [
        prefilled(1, 0, PROMPT, [1, 2, 3]),
        *(make_plan(step_id, decode_rows=ints(0)) for step_id in (2, 3)),
    ]
    pending = [runner.launch(step) for step in launch_steps(runner, *plans)]
    pending[0].wait(0)
    with pytest.raises(StepFailure, match="out of memory"):
        pending[1].wait(0)
    with pytest.raises(StepFailure, match="an earlier step failed"):
        pending[2].wait(0)
    runner.reset()
    assert len(runner.launch(launch_steps(runner, plans[0])[0]).wait(0).rows) == 1


def test_the_real_clock_makes_a_step_last_as_long_as_it_costs() -> None:
    runner = VirtualRunner(TINY, cost=CostModel(2e7))
    (step,) = launch_steps(runner, prefilled(1, 0, PROMPT, [1, 2, 3]))
    begin_ns = time.monotonic_ns()
    runner.launch(step).wait(0)
    assert time.monotonic_ns() - begin_ns >= 2e7


def test_sizes_come_from_the_flags_and_the_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 300, "max_position_embeddings": 64}')
    limits = build_virtual_runner(ExecutorConfig(virtual=True, max_num_seqs=2), tmp_path).limits
    assert (limits.vocab_size, limits.max_model_len, limits.num_blocks) == (300, 64, 1 + 2 * 4)
    config = ExecutorConfig(virtual=True, virtual_vocab_size=77, max_model_len=32, num_kv_blocks=9)
    limits = build_virtual_runner(config, tmp_path).limits
    assert (limits.vocab_size, limits.max_model_len, limits.num_blocks) == (77, 32, 9)
    with pytest.raises(ValueError, match=r"^--max-model-len: .* 64"):
        build_virtual_runner(ExecutorConfig(max_model_len=65), tmp_path)
    (tmp_path / "config.json").write_text('{"vocab_size": 300}')
    with pytest.raises(CheckpointError, match=r"config\.json: max_position_embeddings"):
        build_virtual_runner(ExecutorConfig(), tmp_path)


@pytest.mark.parametrize(
    "rope",
    [
        {},
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.5, "original_max_position_embeddings": 65536}},
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
    ],
)
def test_a_virtual_runner_serves_as_long_sequences_as_the_model_would(
    tmp_path: Path, rope: dict[str, object]
) -> None:
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 96,
        "max_position_embeddings": 32768,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 100,
    }
    (tmp_path / "config.json").write_text(json.dumps(config | rope))
    model = read_model_config(tmp_path)
    limits = build_virtual_runner(ExecutorConfig(virtual=True), tmp_path).limits
    assert (limits.max_model_len, limits.vocab_size) == (model.max_model_len, model.vocab_size)


def test_neither_the_virtual_package_nor_its_service_imports_torch() -> None:
    code = (
        "import sys, executor_svc.virtual, executor_svc.process as main\n"
        "main.build_runner(main.parse_config(['--virtual']))\n"
        "assert not {'torch', 'transformers', 'scheduler_svc'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
