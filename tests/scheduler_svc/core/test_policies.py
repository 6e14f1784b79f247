"""The policies of the study: the same tokens, in other steps; and what the core counts of each."""

import pytest
from core_harness import Harness

from scheduler_svc.core.request import Finish
from scheduler_svc.core.scheduler import CoreConfig


def make_harness(**changes: object) -> Harness:
    """Room for everything: 4 rows, sequences of up to 40 tokens, 40 tokens a step."""
    config = CoreConfig(**({"max_num_batched_tokens": 40, "pipeline_depth": 1} | changes))
    return Harness(config, num_blocks=60, max_num_batched_tokens=40)


def test_naive_runs_one_sequence_at_a_time():
    harness = make_harness(batching="naive")
    for length in (3, 5, 2):
        harness.add([1] * length, max_tokens=3)
    harness.run_to_end()
    harness.check_answers()
    assert all(len(plan.prefills) + len(plan.decode_rows) == 1 for plan in harness.plans)
    assert [start.sequence_id for plan in harness.plans for start in plan.starts] == [1, 2, 3]


def test_static_runs_a_batch_until_its_last_sequence_ends_and_counts_the_padding():
    harness = make_harness(batching="static")
    for max_tokens in (2, 6, 4):
        harness.add([1, 2, 3], max_tokens)
    harness.plan()
    harness.deliver()
    (late,) = harness.add([2, 2], max_tokens=1)
    harness.run_to_end()
    harness.check_answers()
    first, second = (plan for plan in harness.plans if plan.starts)
    assert [start.sequence_id for start in first.starts] == [1, 2, 3]
    assert [start.sequence_id for start in second.starts] == [late]
    batch = [plan for plan in harness.plans if plan.step_id < second.step_id]
    assert [len(plan.decode_rows) for plan in batch] == [0, 3, 3, 3, 3, 3]
    # Six steps of three rows sampled 2 + 6 + 4 tokens that were wanted.
    assert harness.core.stats().num_padded_tokens == 18 - 12
    assert harness.core.stats().num_padding == 0


def test_a_static_batch_is_gathered_over_several_steps_before_it_decodes():
    harness = make_harness(batching="static", max_num_batched_tokens=8)
    for token in (1, 2, 3):
        harness.add([token] * 6, max_tokens=2)
    harness.run_to_end()
    harness.check_answers()
    steps = [
        (sum(chunk.num_tokens for chunk in plan.prefills), len(plan.decode_rows)) for plan in harness.plans
    ]
    assert steps == [(8, 0), (8, 0), (2, 0), (0, 3)]


def test_a_padding_row_gives_its_blocks_up_before_anybody_is_preempted():
    harness = Harness(
        CoreConfig(max_num_batched_tokens=40, batching="static"), num_blocks=8, max_num_batched_tokens=40
    )
    harness.add([1, 1, 1, 1, 1, 1, 1], max_tokens=1)
    harness.add([2, 2, 2, 2, 2, 2, 2], max_tokens=15)
    harness.run_to_end()
    harness.check_answers()
    assert harness.core.stats().num_preemptions == 0


def test_a_row_that_only_pads_is_not_blamed_for_a_failed_plan():
    harness = make_harness(batching="static")
    ids = harness.add([1, 2, 3], 1) + harness.add([1, 2, 4], 9)
    harness.plan()
    harness.deliver()
    plan = harness.plan()
    assert len(plan.decode_rows) == 2
    assert harness.core.unanswered(plan.step_id)[0] == {ids[1]}
    harness.lose_session()
    harness.run_to_end()
    harness.check_answers()


def test_without_a_kv_cache_every_token_is_computed_from_the_whole_sequence():
    harness = make_harness(batching="naive", enable_kv_cache=False)
    (only,) = harness.add([1, 2, 3, 1, 2], max_tokens=4)
    harness.run_to_end()
    harness.check_answers()
    assert [plan.num_tokens for plan in harness.plans] == [5, 6, 7, 8]
    assert harness.answers[only].finish is Finish.LENGTH
    assert harness.core.stats().num_prefix_hit_tokens == 0
    assert harness.core.stats().num_preemptions == 0


def test_contiguous_allocation_holds_the_longest_sequence_for_each_and_shares_nothing():
    sizes = {}
    for kv_allocation in ("paged", "contiguous"):
        harness = make_harness(kv_allocation=kv_allocation)
        for _ in range(3):
            harness.add([1, 2, 3, 1, 2, 3], max_tokens=4)
        harness.plan()
        stats = harness.core.stats()
        sizes[kv_allocation] = (stats.num_held_blocks, stats.num_unused_slots)
        harness.run_to_end()
        harness.check_answers()
    # Six tokens in blocks of four, the first block shared by three; or three times forty slots.
    assert sizes == {"paged": (4, 6), "contiguous": (30, 102)}


@pytest.mark.parametrize(
    ("batching", "enable_kv_cache"),
    [("continuous", True), ("static", True), ("naive", True), ("naive", False)],
)
@pytest.mark.parametrize("kv_allocation", ["paged", "contiguous"])
def test_the_policy_changes_no_token(batching: str, kv_allocation: str, enable_kv_cache: bool):
    harness = make_harness(batching=batching, kv_allocation=kv_allocation, enable_kv_cache=enable_kv_cache)
    for seed in range(9):
        harness.add(
            [seed % 2] * (seed + 1), max_tokens=9 - seed, seed=seed, n=1 + seed % 2, end_token_ids=(5,)
        )
    harness.run_to_end(num_decode_steps=2)
    harness.check_answers()


def test_recomputing_everything_is_for_the_naive_policy():
    with pytest.raises(ValueError, match="--no-kv-cache"):
        make_harness(batching="static", enable_kv_cache=False)


@pytest.mark.parametrize(("aging_seconds", "starts_by"), [(None, None), (20.0, 25)])
def test_aging_lets_a_low_class_start_beside_an_endless_stream_of_a_higher_one(aging_seconds, starts_by):
    harness = Harness(
        CoreConfig(max_num_batched_tokens=16, pipeline_depth=1, priority_aging_seconds=aging_seconds),
        max_num_seqs=1,
    )
    harness.add([1], max_tokens=1, priority=1)
    (low,) = harness.add([2], max_tokens=1, priority=0)
    started_at = None
    for _ in range(100):
        harness.add([1], max_tokens=1, priority=1)
        plan = harness.plan()
        harness.deliver()
        if any(start.sequence_id == low for start in plan.starts):
            started_at = harness.now
    if starts_by is None:
        assert started_at is None
    else:
        assert started_at is not None
        assert started_at <= starts_by
