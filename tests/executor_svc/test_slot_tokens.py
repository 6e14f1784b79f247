"""--verify on the real executor: a slot that holds another token than its row claims fails the step, and names it."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from executor_plans import TINY, Planner
from torch_harness import Hand, make_runner, random_tokens, save_checkpoint

import executor_svc.model_runner
from executor_svc.layers.ops import Ops
from executor_svc.plan import ErrorCode, RowStatus, StepFailure
from executor_svc.row_table import RowTable
from executor_svc.runner import RunnerLimits
from executor_svc.sampler import SampledTokens, SamplingRows
from executor_svc.slot_tokens import SlotTokens
from executor_svc.torch_runner import TorchRunner
from executor_svc.virtual import virtual_tokens


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
def hand(shared_runner: TorchRunner) -> Hand:
    """A hand on a runner with clear rows and two sequences of 10 tokens, computed; blocks are of 4."""
    shared_runner.reset()
    hand = Hand(shared_runner, 1)
    for row in (0, 1):
        hand.start(row, [row + 1] * 10)
        hand.prefill(row)
    hand.run()
    return hand


def failure_of(hand: Hand) -> StepFailure:
    """Runs the plan made since the last one, which must fail."""
    with pytest.raises(StepFailure) as failure:
        hand.run()
    assert failure.value.code is ErrorCode.DATA_LOSS
    return failure.value


def test_a_prefix_hit_on_other_tokens_is_found_at_the_start(hand: Hand):
    tokens = [1] * 5 + [9, 1, 1, 1]
    hand.start(2, tokens, share=(0, 2))
    failure = failure_of(hand)
    block = hand.rows[0].table[1]
    assert failure.description == f"row 2, position 5: block {block} holds token 1, not token 9"
    assert failure.rows == (2,)


def test_a_prefix_hit_on_the_same_tokens_is_right(hand: Hand):
    hand.start(2, [1] * 9, share=(0, 2))
    hand.prefill(2)
    hand.run()
    hand.decode(2)
    hand.run()


def test_a_prefix_that_this_very_step_fills_is_right_and_one_that_it_does_not_is_found(hand: Hand):
    hand.start(2, [7] * 10)
    hand.prefill(2)
    hand.start(3, [7] * 9, share=(2, 2))
    hand.prefill(3)
    hand.run()
    hand.start(4, [8] * 10)
    hand.prefill(4, 4)
    hand.start(5, [8] * 9, share=(4, 2))
    hand.prefill(5)
    failure = failure_of(hand)
    assert failure.description.startswith(f"row 5, position 4: block {hand.rows[4].table[1]} holds ")
    assert failure.rows == (5,)


def test_a_block_that_nobody_has_written_is_found(checkpoint: Path):
    runner = make_runner(checkpoint)
    hand = Hand(runner, 1)
    hand.start(0, [1] * 6)
    hand.run()
    hand.start(1, [1] * 6, share=(0, 1))
    failure = failure_of(hand)
    block = hand.rows[0].table[0]
    assert failure.description == f"row 1, position 0: block {block} holds nothing, not token 1"
    runner.close()


@pytest.mark.parametrize("num_steps", [1, 3])
def test_a_block_table_that_changes_under_a_row_is_found(hand: Hand, num_steps: int):
    hand.runner.model_runner.state.block_tables[1, 1] = hand.rows[0].table[1]
    hand.decode(0, num_steps)
    hand.decode(1, num_steps)
    failure = failure_of(hand)
    block = hand.rows[0].table[1]
    assert failure.description == f"row 1, position 4: block {block} holds token 1, not token 2"


def test_a_write_into_anothers_block_is_found_by_whoever_reads_it_next(hand: Hand):
    """Row 1 writes its position 10 into the block of row 0's positions 0 to 3."""
    hand.runner.model_runner.state.block_tables[1, 2] = hand.rows[0].table[0]
    hand.decode(0)
    hand.decode(1)
    failure = failure_of(hand)
    assert failure.rows[0] in (0, 1)
    assert f"block {hand.rows[0].table[0]} holds" in failure.description


def test_the_next_session_goes_on_with_what_the_cache_holds(hand: Hand):
    hand.start(2, [9] * 10, share=(0, 1))
    failure_of(hand)
    first = hand.rows[0]
    hand.runner.reset()
    hand.rows.clear()
    hand.table = RowTable(hand.runner.limits)
    hand.rows[0] = first
    hand.start(1, [1] * 9, share=(0, 2))
    del hand.rows[0]
    hand.prefill(1)
    hand.run()


def test_without_the_flag_nothing_is_kept_or_compared(checkpoint: Path):
    runner = make_runner(checkpoint, verify=False)
    assert runner.model_runner.slot_tokens is None
    hand = Hand(runner, 1)
    hand.start(0, [1] * 10)
    hand.prefill(0)
    hand.run()
    hand.start(1, [9] * 10, share=(0, 1))
    hand.prefill(1)
    hand.run()
    runner.close()


def choose_virtual_tokens(logits: torch.Tensor, rows: SamplingRows, ops: Ops) -> SampledTokens:
    """What the planner knows that rows sample."""
    seeds = rows.state.params.seeds[torch.tensor(rows.rows)].numpy().view(np.uint64)
    tokens = torch.tensor(virtual_tokens(seeds, rows.positions, TINY.vocab_size), dtype=torch.int32)
    return SampledTokens(torch.stack((tokens, torch.full_like(tokens, RowStatus.OK))), None)


@pytest.mark.parametrize("seed", range(6))
def test_random_valid_schedules_never_trip_it(checkpoint: Path, seed: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(executor_svc.model_runner, "choose", choose_virtual_tokens)
    names = [name for name in RunnerLimits.__dataclass_fields__ if name not in ("num_blocks", "vocab_size")]
    limits = {name: getattr(TINY, name) for name in names}
    runner = make_runner(checkpoint, num_kv_blocks=TINY.num_blocks, **limits)
    planner, table = Planner(random.Random(seed)), RowTable(TINY)
    num_hits = 0
    for _ in range(120):
        plan = planner.next_plan()
        num_hits += sum(start.num_computed_tokens > 0 for start in plan.starts)
        launched = runner.launch(table.apply(plan))
        for sub_step in range(plan.num_decode_steps):
            launched.wait(sub_step)
    assert num_hits > 0
    runner.close()


def test_many_rows_are_compared_in_parts_of_bounded_size(
    shared_runner: TorchRunner, monkeypatch: pytest.MonkeyPatch
):
    """With room for 25 slots at once, rows of 10 positions come in twos."""
    monkeypatch.setattr("executor_svc.slot_tokens._MAX_COMPARED", 25)
    shared_runner.reset()
    hand = Hand(shared_runner, 2)
    rng = np.random.default_rng(0)
    for row in range(7):
        hand.start(row, random_tokens(rng, 10))
        hand.prefill(row)
    hand.run()
    for corrupt in range(7):
        state = shared_runner.model_runner.state
        slots = shared_runner.model_runner.slot_tokens
        assert slots is not None
        lengths = dict.fromkeys(range(7), 10)
        slots.check(state, lengths)
        kept = int(state.token_ids[corrupt, 9])
        state.token_ids[corrupt, 9] = (kept + 1) % 131
        with pytest.raises(StepFailure, match=f"row {corrupt}, position 9: ") as failure:
            slots.check(state, lengths)
        assert failure.value.rows == (corrupt,)
        slots.check(state, dict.fromkeys(range(7), 9))
        state.token_ids[corrupt, 9] = kept


def test_a_check_of_no_rows_or_of_no_positions_is_nothing(shared_runner: TorchRunner):
    slots = SlotTokens(shared_runner.limits, torch.device("cpu"))
    slots.check(shared_runner.model_runner.state, {})
    slots.check(shared_runner.model_runner.state, {3: 0})
