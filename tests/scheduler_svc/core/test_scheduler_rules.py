"""The rules at the top of scheduler.py, one situation each."""

import numpy as np
import pytest
from core_harness import Harness, make_request, make_session

from scheduler_svc.core.request import Finish, Int32Array, RequestRefused, Sampling, sequence_seed
from scheduler_svc.core.scheduler import CoreConfig, Scheduler
from scheduler_svc.core.step import ResultMismatch, StepResult

TWO_TOKENS: Int32Array = np.array([1, 2], np.int32)


def test_plans_go_ahead_of_results_up_to_the_depth():
    harness = Harness(CoreConfig(max_num_batched_tokens=16, pipeline_depth=3))
    harness.add([1, 2, 3], max_tokens=9)
    plans = [harness.plan() for _ in range(4)]
    assert [plan is not None for plan in plans] == [True, True, True, False]
    assert [chunk.samples for chunk in plans[0].prefills] == [True]
    assert [list(plan.decode_rows) for plan in plans[1:3]] == [[plans[0].starts[0].row]] * 2
    harness.deliver()
    assert harness.plan() is not None


def test_nothing_is_planned_past_max_tokens():
    harness = Harness(CoreConfig(max_num_batched_tokens=16, pipeline_depth=4))
    harness.add([1, 2, 3], max_tokens=2)
    assert [harness.plan() is not None for _ in range(3)] == [True, True, False]
    harness.run_to_end()
    harness.check_answers()


def test_sub_steps_stop_at_each_rows_own_limit():
    harness = Harness()
    harness.add([1, 2, 3], max_tokens=3)
    harness.add([1, 2, 4], max_tokens=9)
    harness.plan()
    plan = harness.plan(num_decode_steps=4)
    assert plan.num_decode_steps == 4
    assert sorted(plan.decode_row_steps) == [2, 4]
    harness.run_to_end(num_decode_steps=4)
    harness.check_answers()


def test_an_end_learnt_late_frees_row_and_blocks_at_once_and_late_tokens_are_dropped():
    harness = Harness()
    (first,) = harness.add([1, 2, 3], max_tokens=9)
    start = harness.plan().starts[0]
    harness.plan()
    harness.abort(first)
    assert harness.core.stats().num_held_blocks == 0
    harness.deliver()
    harness.add([1, 1, 1, 1, 1], max_tokens=3)
    plan = harness.plan()
    assert plan.release_rows == [start.row]
    assert plan.starts[0].row == start.row
    harness.run_to_end()
    harness.check_answers()
    assert harness.core.stats().num_late_tokens == 2


def test_sequences_of_one_plan_share_the_blocks_that_this_very_step_fills():
    harness = Harness()
    harness.add([1, 2, 3, 4, 5], max_tokens=2, n=2)
    plan = harness.plan()
    first, second = plan.starts
    assert second.num_computed_tokens == 4
    assert first.block_table[0] == second.block_table[0]
    assert first.block_table[1] != second.block_table[1]
    assert [chunk.num_tokens for chunk in plan.prefills] == [5, 1]
    harness.run_to_end()
    harness.check_answers()


def test_blocks_are_not_shared_across_salts():
    harness = Harness()
    harness.add([1, 2, 3, 4, 5], max_tokens=2, cache_salt=b"one")
    harness.add([1, 2, 3, 4, 5], max_tokens=2, cache_salt=b"other")
    assert [start.num_computed_tokens for start in harness.plan().starts] == [0, 0]


def test_sampled_tokens_are_shared_once_they_are_confirmed():
    harness = Harness()
    (first,) = harness.add([1, 2, 3], max_tokens=7)
    harness.run_to_end()
    conversation = [1, 2, 3, *harness.answers[first].tokens]
    assert len(conversation) == 10
    harness.add([*conversation, 1, 2], max_tokens=1)
    # The tenth token's KV was never computed; the first nine fill two blocks.
    assert harness.plan().starts[0].num_computed_tokens == 8


def test_a_hit_never_covers_the_last_known_token():
    harness = Harness()
    harness.add([1, 2, 3, 4], max_tokens=1)
    harness.run_to_end()
    harness.add([1, 2, 3, 4], max_tokens=1)
    assert harness.plan().starts[0].num_computed_tokens == 0


def test_what_an_unanswered_plan_would_have_filled_is_not_hit_after_a_failure():
    harness = Harness()
    harness.add([1, 2, 3, 4, 5], max_tokens=2)
    harness.plan()
    harness.lose_session()
    assert harness.plan().starts[0].num_computed_tokens == 0
    harness.run_to_end()
    harness.check_answers()


def test_what_a_confirmed_plan_filled_is_hit_after_a_failure_of_the_same_instance_alone():
    for changes, hits in [({}, 4), ({"instance_id": "another"}, 0)]:
        harness = Harness()
        harness.add([1, 2, 3, 4, 5], max_tokens=9)
        harness.plan()
        harness.deliver()
        harness.lose_session(**changes)
        (start,) = harness.plan().starts
        assert start.num_computed_tokens == hits
        assert start.is_restart
        assert len(start.token_ids) == 6, "the confirmed token is known, not sampled again"
        harness.run_to_end()
        harness.check_answers()


def test_the_latest_of_the_lowest_class_is_preempted_and_takes_its_late_results_first():
    harness = Harness(num_blocks=5)
    (first,) = harness.add([1, 1, 1, 1, 1, 1, 1], max_tokens=9)
    (second,) = harness.add([2, 2, 2, 2, 2, 2, 2], max_tokens=9)
    harness.plan()
    harness.plan()
    assert harness.core.stats().num_running == 2
    harness.deliver()
    plan = harness.plan()
    stats = harness.core.stats()
    assert (stats.num_preemptions, stats.num_running, stats.num_waiting) == (1, 1, 1)
    assert list(plan.decode_rows) == [harness.plans[0].starts[0].row]
    before = len(harness.answers[second].tokens)
    harness.deliver()
    assert len(harness.answers[second].tokens) == before + 1, "the token under way is not lost"
    harness.run_to_end()
    harness.check_answers()
    restart = next(start for plan in harness.plans for start in plan.starts if start.is_restart)
    assert restart.sequence_id == second
    assert first < second


def test_a_preempted_sequence_is_not_started_while_results_are_under_way():
    harness = Harness(CoreConfig(max_num_batched_tokens=16, pipeline_depth=4), num_blocks=5)
    (first,) = harness.add([1, 1, 1, 1, 1, 1, 1], max_tokens=9)
    (second,) = harness.add([2, 2, 2, 2, 2, 2, 2], max_tokens=9)
    for _ in range(3):
        harness.plan()
    assert harness.core.stats().num_preemptions == 1
    harness.abort(first)
    # There is room now, but plans 1 and 2 sampled for the preempted one and are unanswered.
    assert harness.plan() is None
    harness.deliver()
    assert harness.plan() is None
    harness.deliver()
    (start,) = harness.plan().starts
    assert (start.sequence_id, len(start.token_ids)) == (second, 9)


def test_several_steps_are_planned_only_where_their_blocks_can_be_had_without_preemption():
    for num_blocks, steps in [(7, 4), (6, 1)]:
        harness = Harness(CoreConfig(max_num_batched_tokens=16, pipeline_depth=1), num_blocks=num_blocks)
        for token in (1, 2):
            harness.add([token] * 6, max_tokens=6)
        harness.plan()
        harness.deliver()
        # Each has two blocks, and four steps would take it into a third.
        assert harness.plan(num_decode_steps=4).num_decode_steps == steps
        assert harness.core.stats().num_preemptions == 0
        harness.run_to_end(num_decode_steps=4)
        harness.check_answers()


def test_a_prefix_is_evicted_from_its_end():
    harness = Harness(num_blocks=5)
    harness.add([1] * 12, max_tokens=1)
    harness.run_to_end()
    assert harness.core.stats().num_cached_blocks == 3
    harness.add([2] * 7, max_tokens=1)
    harness.run_to_end()
    harness.add([1] * 12, max_tokens=1)
    # Two blocks were needed: the free one, and the deepest of the three.
    assert harness.plan().starts[0].num_computed_tokens == 8


def test_a_higher_class_is_started_first_and_preempted_last():
    harness = Harness(max_num_seqs=1)
    low, _, high = (harness.add([1, 2], max_tokens=2, priority=priority)[0] for priority in (0, 0, 5))
    harness.run_to_end()
    order = [start.sequence_id for plan in harness.plans for start in plan.starts]
    assert order == [high, low, low + 1]


def test_a_long_prompt_is_computed_in_chunks_beside_decoding():
    harness = Harness(CoreConfig(max_num_batched_tokens=8, pipeline_depth=1))
    harness.add([1, 2], max_tokens=9)
    harness.plan()
    harness.deliver()
    harness.add([2] * 20, max_tokens=2)
    chunks = []
    for _ in range(3):
        plan = harness.plan()
        assert len(plan.decode_rows) == 1
        chunks += [(chunk.first_position, chunk.num_tokens, chunk.samples) for chunk in plan.prefills]
        harness.deliver()
    assert chunks == [(0, 7, False), (7, 7, False), (14, 6, True)]


def test_without_chunked_prefill_a_prompt_waits_for_a_step_that_holds_it_whole():
    harness = Harness(CoreConfig(16, pipeline_depth=1, enable_chunked_prefill=False))
    harness.add([1] * 10, max_tokens=1)
    harness.add([2] * 10, max_tokens=1)
    assert [len(plan.prefills) for plan in (harness.plan(), harness.deliver() and harness.plan())] == [1, 1]
    with pytest.raises(RequestRefused, match="prompt"):
        harness.add([1] * 17, max_tokens=1)


def test_prompt_logprobs_take_no_hits_and_come_once_even_after_a_loss():
    harness = Harness()
    harness.add([1, 2, 3, 4, 5], max_tokens=1)
    harness.run_to_end()
    (wanting,) = harness.add([1, 2, 3, 4, 5] * 4, max_tokens=2, sampling=Sampling(prompt_logprobs=0))
    assert harness.plan().starts[0].num_computed_tokens == 0
    harness.deliver()
    assert harness.answers[wanting].prompt_positions, "the first chunk of sixteen judged some"
    harness.lose_session()
    harness.run_to_end()
    harness.check_answers()


def test_the_prompt_is_judged_also_where_the_same_result_ends_the_sequence():
    harness = Harness()
    (scored,) = harness.add([1, 2, 3, 4, 5], max_tokens=1, sampling=Sampling(prompt_logprobs=0))
    harness.run_to_end()
    harness.check_answers()
    assert harness.answers[scored].prompt_positions == [1, 2, 3, 4]


def test_what_a_failed_row_read_or_wrote_is_not_hit():
    harness = Harness()
    harness.add([1, 2, 3, 4, 5], max_tokens=3)
    harness.plan()
    harness.deliver(failed_row=0)
    assert harness.core.stats().num_cached_blocks == 0
    harness.add([1, 2, 3, 4, 5], max_tokens=3)
    harness.run_to_end()
    assert harness.plans[-3].starts[0].num_computed_tokens == 0


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "field"),
    [
        ([], 1, "prompt"),
        ([1] * 40, 1, "prompt"),
        ([1, 2], 0, "stop.max_tokens"),
        ([1, 2], 39, "stop.max_tokens"),
    ],
)
def test_what_could_never_be_served_is_refused_by_name(prompt: list[int], max_tokens: int, field: str):
    harness = Harness()
    with pytest.raises(RequestRefused) as refusal:
        harness.add(prompt, max_tokens)
    assert refusal.value.field == field
    assert harness.core.stats().num_waiting == 0


@pytest.mark.parametrize(
    "resumed",
    [
        (TWO_TOKENS,),
        (TWO_TOKENS, None, None),
        (TWO_TOKENS, np.array([1, 2, 3], np.int32)),
        (None, None),
    ],
    ids=["too few", "too many", "as long as it may be", "all over"],
)
def test_outputs_that_cannot_be_gone_on_with_are_refused(resumed: tuple[Int32Array | None, ...]):
    harness = Harness()
    with pytest.raises(RequestRefused) as refusal:
        harness.add([1, 2], max_tokens=3, n=2, resumed=resumed)
    assert refusal.value.field == "resume.outputs"
    assert not harness.core.live
    (going_on, over) = harness.core.add_request(make_request([1, 2], 3, n=2, resumed=(TWO_TOKENS, None)), 0.0)
    assert going_on in harness.core.live
    assert over not in harness.core.live


def test_the_cache_limits_the_length_where_it_is_smaller_than_the_model():
    harness = Harness(num_blocks=4)
    assert harness.core.max_model_len == 13, "the last token needs no slot"
    harness.add([1] * 12, max_tokens=1)
    harness.run_to_end()
    harness.check_answers()
    with pytest.raises(RequestRefused, match=r"stop\.max_tokens"):
        harness.add([1] * 12, max_tokens=2)


def test_sequences_that_fit_no_more_after_a_loss_end_and_the_others_go_on():
    harness = Harness()
    (long,) = harness.add([1] * 20, max_tokens=9)
    harness.add([1, 2], max_tokens=3)
    harness.plan()
    harness.lose_session(instance_id="smaller", num_blocks=4)
    assert harness.answers[long].finish is Finish.NO_ROOM
    harness.run_to_end()
    harness.check_answers()


@pytest.mark.parametrize(
    "changes",
    [
        {"step_id": 2},
        {"sub_step": 1},
        {"last": False},
        {"rows": np.array([3], np.int32)},
        {"rows": np.array([], np.int32), "token_ids": np.array([], np.int32)},
        {"token_ids": np.array([13], np.int32)},
        {"token_ids": np.array([-1], np.int32)},
        {"token_ids": np.array([1, 2], np.int32)},
    ],
)
def test_a_result_that_no_plan_asked_for_is_refused_and_changes_nothing(changes: dict[str, object]):
    harness = Harness()
    harness.add([1, 2, 3], max_tokens=2)
    harness.plan()
    good = harness.under_way[0]
    fields = {name: getattr(good, name) for name in ("step_id", "sub_step", "last", "rows", "token_ids")}
    with pytest.raises(ResultMismatch):
        harness.core.update(StepResult(**(fields | changes)), 1.0)
    harness.run_to_end()
    harness.check_answers()


def test_a_row_that_could_not_sample_ends_alone():
    harness = Harness()
    (bad,) = harness.add([1, 2, 3], max_tokens=5)
    harness.add([1, 2, 4], max_tokens=5)
    harness.plan()
    harness.deliver(failed_row=0)
    assert harness.answers[bad].finish is Finish.FAILED
    harness.run_to_end()
    harness.check_answers()
    assert len(harness.answers) == 2


def test_blame_names_the_sequences_that_the_plan_was_made_for():
    harness = Harness()
    (first,) = harness.add([1, 2, 3], max_tokens=5)
    (second,) = harness.add([1, 2, 4], max_tokens=5)
    plan = harness.plan()
    row = next(start.row for start in plan.starts if start.sequence_id == second)
    assert harness.core.blame(plan.step_id, [row]) == [second]
    assert harness.core.unanswered(plan.step_id)[0] == {first, second}
    harness.abort(second)
    assert harness.core.blame(plan.step_id, [row]) == []
    assert harness.core.blame(99, [row]) == []


def test_a_step_that_could_not_hold_one_token_of_every_row_is_refused_at_start():
    with pytest.raises(ValueError, match="--max-num-batched-tokens"):
        Scheduler(CoreConfig(max_num_batched_tokens=3), make_session())


@pytest.mark.parametrize("kv_allocation", ["paged", "contiguous"])
def test_a_plan_with_many_long_starts_stays_under_two_mebibytes(kv_allocation: str):
    config = CoreConfig(max_num_batched_tokens=400_000, kv_allocation=kv_allocation)
    harness = Harness(
        config,
        num_blocks=400_000,
        block_size=1,
        max_model_len=100_001,
        max_num_batched_tokens=400_000,
        max_num_seqs=8,
    )
    for number in range(6):
        harness.core.add_request(make_request([1] * 50_000, 1, cache_salt=b"%d" % number), 0.0)
    plan = harness.core.schedule(0.0)
    assert 1 <= len(plan.starts) < 6
    assert sum(4 * (len(start.token_ids) + len(start.block_table)) for start in plan.starts) < 2 * 1024 * 1024


def test_the_longest_sequence_that_fits_a_message_is_started_and_a_longer_one_refused():
    harness = Harness(
        CoreConfig(max_num_batched_tokens=600_000),
        num_blocks=600_000,
        max_model_len=600_001,
        max_num_batched_tokens=600_000,
    )
    with pytest.raises(RequestRefused, match="prompt"):
        harness.core.add_request(make_request([1] * 400_000, 1), 0.0)
    harness.core.add_request(make_request([1] * 390_000, 1), 0.0)
    assert len(harness.core.schedule(0.0).starts) == 1


def test_a_sequence_too_long_for_a_new_sessions_steps_ends_without_chunked_prefill():
    harness = Harness(CoreConfig(40, enable_chunked_prefill=False), max_num_batched_tokens=40)
    (long,) = harness.add([1] * 20, max_tokens=9)
    harness.plan()
    harness.lose_session(instance_id="another", max_num_batched_tokens=16)
    assert harness.answers[long].finish is Finish.NO_ROOM


def test_the_seed_of_output_zero_is_the_requests_and_the_others_differ():
    seeds = [sequence_seed(42, index) for index in range(100)]
    assert seeds[0] == 42
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 2**64 for seed in seeds)
