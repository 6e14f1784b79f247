"""The offline verifier: it passes what the core does, whatever happens, and names each fault that is planted."""

import copy
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from recordings import RecordingHarness, edited, eventful_recording, first, numbers_of, plans_of, results_of

from executor_svc.plan import StepFailure
from executor_svc.row_table import RowTable
from executor_svc.runner import RunnerLimits
from executor_svc.wire import decode_plan
from nanoserve.arrays import pack_int32
from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve.executor.v1.recording_pb2 import RecordingEntry
from scheduler_svc.core.request import Finish
from scheduler_svc.core.scheduler import CoreConfig
from scheduler_svc.replay.blocks import FaultKind
from scheduler_svc.replay.verifier import verify

Entries = list[RecordingEntry]
BLOCK_SIZE = 4


@pytest.fixture(scope="module")
def good() -> Entries:
    return eventful_recording()


def test_a_good_recording_has_no_fault_and_its_counts(good: Entries):
    report = verify(good)
    assert report.fault is None
    assert report.num_sessions == 3
    assert (report.num_plans, report.num_results) == (len(plans_of(good)), len(results_of(good)))
    assert report.num_tokens == sum(len(numbers_of(result.rows)) for result in results_of(good))
    assert report.num_hit_tokens > 0
    assert report.num_failures == 0


def two_rows_write_one_block(entries: Entries) -> None:
    plan = first(plans_of(entries), lambda plan: len(plan.starts) > 1)
    shared = numbers_of(plan.starts[0].block_table)[-1]
    plan.starts[1].block_table = edited(plan.starts[1].block_table, -1, shared)


def a_held_block_is_given_out_again(entries: Entries) -> None:
    started = first(plans_of(entries), lambda plan: plan.starts)
    plan = first(plans_of(entries), lambda plan: plan.new_block_ids)
    plan.new_block_ids = edited(plan.new_block_ids, 0, numbers_of(started.starts[0].block_table)[0])


def a_prefix_hit_on_a_block_that_nobody_wrote(entries: Entries) -> None:
    plan = first(plans_of(entries), lambda plan: plan.starts)
    plan.starts[0].num_computed_tokens = BLOCK_SIZE
    plan.prefills[0].first_position += BLOCK_SIZE
    plan.prefills[0].num_tokens -= BLOCK_SIZE


def a_prefix_hit_on_what_an_unanswered_plan_would_have_written(entries: Entries) -> None:
    """The results of the session's first plan and all later ones are taken away."""
    lost = next(i for i, entry in enumerate(entries) if entry.HasField("lost"))
    entries[:lost] = [entry for entry in entries[:lost] if not entry.HasField("result")]
    # So many plans in flight are no fault of their own.
    for entry in entries:
        if entry.HasField("opened"):
            entry.opened.description.max_plans_in_flight = 1000


def a_prefix_hit_on_other_tokens(entries: Entries) -> None:
    start = first(
        [start for plan in plans_of(entries) for start in plan.starts],
        lambda start: start.num_computed_tokens,
    )
    start.token_ids = edited(start.token_ids, 0, 12)


def a_prefix_hit_on_the_right_block_in_the_wrong_place(entries: Entries) -> None:
    start = first(
        [start for plan in plans_of(entries) for start in plan.starts],
        lambda start: start.num_computed_tokens >= 2 * BLOCK_SIZE,
    )
    table = numbers_of(start.block_table)
    start.block_table = pack_int32([table[1], table[0], *table[2:]])


def a_block_that_does_not_exist(entries: Entries) -> None:
    plan = first(plans_of(entries), lambda plan: plan.new_block_ids)
    plan.new_block_ids = edited(plan.new_block_ids, 0, 9)


def block_0_is_given_out(entries: Entries) -> None:
    plan = first(plans_of(entries), lambda plan: plan.new_block_ids)
    plan.new_block_ids = edited(plan.new_block_ids, 0, 0)


def a_row_grows_past_its_blocks(entries: Entries) -> None:
    plan = first(plans_of(entries), lambda plan: plan.new_block_ids)
    plan.new_block_rows = plan.new_block_ids = b""


def a_chunk_leaves_a_position_out(entries: Entries) -> None:
    chunk = first(
        [run for plan in plans_of(entries) for run in plan.prefills], lambda run: run.first_position
    )
    chunk.first_position += 1
    chunk.num_tokens -= 1


def a_row_decodes_before_its_prompt_is_computed(entries: Entries) -> None:
    plan = first(plans_of(entries), lambda plan: any(not run.samples for run in plan.prefills))
    chunk = first(list(plan.prefills), lambda run: not run.samples)
    following = plans_of(entries)[plans_of(entries).index(plan) + 1]
    del following.prefills[:]
    following.decode_rows = pack_int32([chunk.row])


def a_row_is_used_after_its_release(entries: Entries) -> None:
    plan = first(plans_of(entries), lambda plan: plan.release_rows and not plan.starts)
    plan.decode_rows = plan.decode_rows + plan.release_rows[:4]


def a_row_is_started_while_it_is_held(entries: Entries) -> None:
    def restarts(plan: pb.StepPlan) -> bool:
        return any(start.row in numbers_of(plan.release_rows) for start in plan.starts)

    first(plans_of(entries), restarts).release_rows = b""


def an_epoch_is_repeated(entries: Entries) -> None:
    first(entries, lambda entry: entry.opened.epoch == 2).opened.epoch = 1


def another_weights_fingerprint_comes_back(entries: Entries) -> None:
    opened = first(entries, lambda entry: entry.opened.epoch == 2).opened
    opened.description.weights_fingerprint = "others"


def a_result_answers_other_rows(entries: Entries) -> None:
    result = first(results_of(entries), lambda result: len(result.rows) > 4)
    result.rows = result.rows[4:] + result.rows[:4]


def a_result_lacks_a_row(entries: Entries) -> None:
    result = first(results_of(entries), lambda result: result.rows)
    result.rows, result.token_ids = result.rows[4:], result.token_ids[4:]


def a_result_is_missing(entries: Entries) -> None:
    del entries[next(i for i, entry in enumerate(entries) if entry.HasField("result"))]


def a_token_is_not_in_the_vocabulary(entries: Entries) -> None:
    result = first(results_of(entries), lambda result: result.rows)
    result.token_ids = edited(result.token_ids, 0, 13)


def a_plan_is_over_the_token_budget(entries: Entries) -> None:
    for entry in entries:
        if entry.HasField("opened"):
            entry.opened.description.max_num_batched_tokens = 9


def a_plan_is_sent_while_too_many_are_in_flight(entries: Entries) -> None:
    for entry in entries:
        if entry.HasField("opened"):
            entry.opened.description.max_plans_in_flight = 1


def a_step_id_is_repeated(entries: Entries) -> None:
    plans_of(entries)[1].step_id = plans_of(entries)[0].step_id


def a_chunk_says_that_it_samples(entries: Entries) -> None:
    first(
        [run for plan in plans_of(entries) for run in plan.prefills], lambda run: not run.samples
    ).samples = True


def hits_leave_nothing_to_compute(entries: Entries) -> None:
    start = plans_of(entries)[0].starts[0]
    start.token_ids = start.token_ids[: 4 * BLOCK_SIZE]
    start.num_prompt_tokens = start.num_computed_tokens = BLOCK_SIZE


def the_executor_refuses_a_plan(entries: Entries) -> None:
    result = results_of(entries)[0]
    result.status = pb.STEP_STATUS_FAILED
    result.error.code = pb.STEP_ERROR_CODE_INVALID_ARGUMENT
    result.error.field, result.error.description = "starts[0].row", "as the test wants it"


def a_plan_is_sent_without_a_session(entries: Entries) -> None:
    del entries[1]


PLANTED: list[tuple[Callable[[Entries], None], FaultKind]] = [
    (two_rows_write_one_block, FaultKind.TWO_WRITERS),
    (a_held_block_is_given_out_again, FaultKind.TWO_WRITERS),
    (a_prefix_hit_on_a_block_that_nobody_wrote, FaultKind.READ_BEFORE_WRITTEN),
    (a_prefix_hit_on_what_an_unanswered_plan_would_have_written, FaultKind.READ_BEFORE_WRITTEN),
    (a_prefix_hit_on_other_tokens, FaultKind.OTHER_TOKENS),
    (a_prefix_hit_on_the_right_block_in_the_wrong_place, FaultKind.OTHER_TOKENS),
    (a_block_that_does_not_exist, FaultKind.BLOCK_OUT_OF_RANGE),
    (block_0_is_given_out, FaultKind.BLOCK_OUT_OF_RANGE),
    (a_row_grows_past_its_blocks, FaultKind.NO_SLOT),
    (a_chunk_leaves_a_position_out, FaultKind.POSITION_GAP),
    (a_row_decodes_before_its_prompt_is_computed, FaultKind.POSITION_GAP),
    (a_row_is_used_after_its_release, FaultKind.ROW_NOT_HELD),
    (a_row_is_started_while_it_is_held, FaultKind.ROW_TAKEN),
    (an_epoch_is_repeated, FaultKind.BAD_EPOCH),
    (another_weights_fingerprint_comes_back, FaultKind.OTHER_MODEL),
    (a_result_answers_other_rows, FaultKind.BAD_RESULT),
    (a_result_lacks_a_row, FaultKind.BAD_RESULT),
    (a_result_is_missing, FaultKind.BAD_RESULT),
    (a_token_is_not_in_the_vocabulary, FaultKind.BAD_RESULT),
    (a_plan_is_over_the_token_budget, FaultKind.OVER_BUDGET),
    (a_plan_is_sent_while_too_many_are_in_flight, FaultKind.OVER_BUDGET),
    (a_step_id_is_repeated, FaultKind.STEP_ORDER),
    (a_chunk_says_that_it_samples, FaultKind.BAD_PLAN),
    (hits_leave_nothing_to_compute, FaultKind.BAD_START),
    (the_executor_refuses_a_plan, FaultKind.REFUSED),
    (a_plan_is_sent_without_a_session, FaultKind.OUTSIDE_SESSION),
]


@pytest.mark.parametrize(("plant", "kind"), PLANTED, ids=[plant.__name__ for plant, _ in PLANTED])
def test_a_planted_fault_is_found_and_named(good: Entries, plant: Callable[[Entries], None], kind: FaultKind):
    entries = copy.deepcopy(good)
    plant(entries)
    fault = verify(entries).fault
    assert fault is not None
    assert fault.kind is kind, fault
    assert fault.description


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_the_core_does_is_without_fault(data: st.DataObject):
    batching = data.draw(st.sampled_from(["continuous", "continuous", "static", "naive"]))
    config = CoreConfig(
        max_num_batched_tokens=data.draw(st.integers(4, 16)),
        pipeline_depth=data.draw(st.integers(1, 4)),
        enable_prefix_caching=data.draw(st.booleans()),
        batching=batching,
        kv_allocation=data.draw(st.sampled_from(["paged", "paged", "contiguous"])),
        enable_kv_cache=batching != "naive" or data.draw(st.booleans()),
    )
    harness = RecordingHarness(config, num_blocks=data.draw(st.integers(11, 16)))
    prompts = st.lists(st.integers(0, 1), min_size=1, max_size=24)
    for _ in range(data.draw(st.integers(5, 40))):
        live = [key for key, answer in harness.answers.items() if answer.finish is Finish.NONE]
        match data.draw(st.sampled_from("apppddddxls")):
            case "a":
                harness.add(data.draw(prompts), data.draw(st.integers(1, 8)), n=data.draw(st.integers(1, 2)))
            case "p":
                harness.plan(data.draw(st.integers(1, 3)))
            case "d" if harness.under_way:
                harness.deliver()
            case "x" if live:
                harness.abort(data.draw(st.sampled_from(live)))
            case "l":
                harness.lose_session()
            case "s":
                harness.lose_session(instance_id=str(len(harness.entries)))
    harness.run_to_end()
    assert verify(harness.entries).fault is None


@pytest.mark.parametrize(("num_answered", "hits"), [(1, 0), (2, 4), (3, 4)])
def test_of_a_plan_lost_halfway_what_the_answered_sub_steps_filled_may_be_hit(num_answered: int, hits: int):
    """Sub-step 1 of step 2 writes position 3, the last of the first block."""
    harness = RecordingHarness()
    harness.add([1, 1], max_tokens=8)
    harness.plan()
    harness.deliver()
    harness.plan(num_decode_steps=4)
    for _ in range(num_answered):
        harness.deliver()
    harness.lose_session()
    harness.run_to_end()
    report = verify(harness.entries)
    assert report.fault is None
    assert report.num_hit_tokens == hits
    # Without the results of sub-steps 1 and up the hit is a fault.
    lost = next(i for i, entry in enumerate(harness.entries) if entry.HasField("lost"))
    del harness.entries[lost - num_answered + 1 : lost]
    fault = verify(harness.entries).fault
    assert (fault.kind if fault else None) == (FaultKind.READ_BEFORE_WRITTEN if hits else None)


NUMBERS = ("release_rows", "new_block_rows", "new_block_ids", "decode_rows", "decode_row_steps")


def changed(plan: pb.StepPlan, data: st.DataObject) -> None:
    """Changes one number of a plan."""
    value = data.draw(st.integers(-1, 45))
    names = [name for name in NUMBERS if getattr(plan, name)]
    names += ["starts"] * bool(plan.starts) + ["prefills"] * bool(plan.prefills) + ["num_decode_steps"]
    name = data.draw(st.sampled_from(names))
    if name in NUMBERS:
        numbers = getattr(plan, name)
        setattr(plan, name, edited(numbers, data.draw(st.integers(0, len(numbers) // 4 - 1)), value))
    elif name == "prefills":
        run = data.draw(st.sampled_from(list(plan.prefills)))
        setattr(run, data.draw(st.sampled_from(["row", "first_position", "num_tokens"])), value)
    elif name == "starts":
        start = data.draw(st.sampled_from(list(plan.starts)))
        field = data.draw(st.sampled_from(["row", "num_prompt_tokens", "num_computed_tokens", "block_table"]))
        if field == "block_table":
            numbers = start.block_table
            value = edited(numbers, data.draw(st.integers(0, len(numbers) // 4 - 1)), value)
        setattr(start, field, value)
    else:
        plan.num_decode_steps = value


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_what_the_executor_refuses_is_a_fault_here_too(data: st.DataObject):
    entries = copy.deepcopy(RECORDED)
    plans = plans_of(entries)
    changed(data.draw(st.sampled_from(plans)), data)
    description = entries[1].opened.description
    names = RunnerLimits.__dataclass_fields__
    table = RowTable(RunnerLimits(**{name: getattr(description, name) for name in names}))
    refusal = None
    try:
        for plan in plans:
            table.apply(decode_plan(plan, description.vocab_size))
    except StepFailure as failure:
        refusal = failure
    assert refusal is None or verify(entries).fault is not None, refusal


RECORDED = eventful_recording()
del RECORDED[next(i for i, entry in enumerate(RECORDED) if entry.HasField("lost")) :]
