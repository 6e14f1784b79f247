import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from executor_plans import TINY, PlannedRow, Planner, ints, make_plan, make_start
from hypothesis import given, settings
from hypothesis import strategies as st

from executor_svc.plan import ErrorCode, Prefill, RowMask, RowSampling, StepFailure, StepPlan
from executor_svc.row_table import RowTable

Rows = dict[int, PlannedRow]
Broken = Iterator[tuple[StepPlan, str]]
FULL = np.full(-(-TINY.vocab_size // 8), 255, np.uint8)


def failure_of(table: RowTable, plan: StepPlan) -> StepFailure:
    with pytest.raises(StepFailure) as caught:
        table.apply(plan)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    return caught.value


def changed_start(plan: StepPlan, index: int, **changes: Any) -> StepPlan:
    starts = list(plan.starts)
    starts[index] = replace(starts[index], **changes)
    return replace(plan, starts=tuple(starts))


def changed_prefill(plan: StepPlan, index: int, **changes: Any) -> StepPlan:
    prefills = list(plan.prefills)
    prefills[index] = replace(prefills[index], **changes)
    return replace(plan, prefills=tuple(prefills))


def put(array: np.ndarray, index: int, value: int) -> np.ndarray:
    copy = array.copy()
    copy[index] = value
    return copy


def broken_header(plan: StepPlan, before: Rows, after: Rows) -> Broken:
    yield replace(plan, step_id=plan.step_id - 1), "step_id"
    yield replace(plan, num_decode_steps=0, decode_row_steps=ints()), "num_decode_steps"
    yield replace(plan, num_decode_steps=TINY.max_num_decode_steps + 1), "num_decode_steps"
    yield replace(plan, new_block_ids=np.append(plan.new_block_ids, 1)), "new_block_ids"
    yield replace(plan, decode_row_steps=np.append(plan.decode_row_steps, 1)), "decode_row_steps"
    if plan.prefills:
        yield replace(plan, num_decode_steps=2), "num_decode_steps"


def broken_releases(plan: StepPlan, before: Rows, after: Rows) -> Broken:
    rows, count = plan.release_rows, len(plan.release_rows)
    for clear in set(range(TINY.max_num_seqs)) - set(before):
        yield replace(plan, release_rows=np.append(rows, clear)), f"release_rows[{count}]"
    for outside in (-1, TINY.max_num_seqs):
        yield replace(plan, release_rows=np.append(rows, outside)), f"release_rows[{count}]"
    if count:
        yield replace(plan, release_rows=np.append(rows, rows[0])), f"release_rows[{count}]"


def broken_starts(plan: StepPlan, before: Rows, after: Rows) -> Broken:
    kept = set(before) - set(plan.release_rows.tolist())
    for index, start in enumerate(plan.starts):
        name, num_known = f"starts[{index}]", len(start.token_ids)
        for row in (-1, TINY.max_num_seqs, *kept):
            yield changed_start(plan, index, row=row), f"{name}.row"
        for token in (-1, TINY.vocab_size):
            token_ids = put(start.token_ids, num_known - 1, token)
            yield changed_start(plan, index, token_ids=token_ids), f"{name}.token_ids[{num_known - 1}]"
        yield changed_start(plan, index, token_ids=ints()), f"{name}.token_ids"
        for count in (0, num_known + 1):
            yield changed_start(plan, index, num_prompt_tokens=count), f"{name}.num_prompt_tokens"
        for count in (-4, start.num_computed_tokens + 1, num_known + TINY.block_size):
            yield changed_start(plan, index, num_computed_tokens=count), f"{name}.num_computed_tokens"
        yield changed_start(plan, index, sampling=RowSampling(top_p=0.0)), f"{name}.sampling.top_p"
        yield from broken_tables(plan, index, kept, before)


def broken_tables(plan: StepPlan, index: int, kept: set[int], before: Rows) -> Broken:
    start = plan.starts[index]
    name, table = f"starts[{index}].block_table", start.block_table
    most = -(-TINY.max_model_len // TINY.block_size)
    free = set(range(1, TINY.num_blocks)) - set(table.tolist())
    yield changed_start(plan, index, block_table=ints(*table, *sorted(free)[: most + 1 - len(table)])), name
    if start.num_computed_tokens:
        yield changed_start(plan, index, block_table=table[: start.num_computed_tokens // 4 - 1]), name
    for block in (0, -1, TINY.num_blocks):
        yield changed_start(plan, index, block_table=np.append(table, block)), f"{name}[{len(table)}]"
    if len(table):
        yield changed_start(plan, index, block_table=np.append(table, table[0])), f"{name}[{len(table)}]"
    # A block that another row holds, owned or shared, may not be claimed as writable.
    held = {block for row in kept for block in before[row].table} - set(table.tolist())
    if len(table) < most:
        for block in held:
            yield changed_start(plan, index, block_table=np.append(table, block)), f"{name}[{len(table)}]"


def broken_new_blocks(plan: StepPlan, before: Rows, after: Rows) -> Broken:
    rows, ids, count = plan.new_block_rows, plan.new_block_ids, len(plan.new_block_rows)

    def added(row: int, block: int) -> StepPlan:
        return replace(plan, new_block_rows=np.append(rows, row), new_block_ids=np.append(ids, block))

    free = set(range(1, TINY.num_blocks)) - {block for state in after.values() for block in state.table}
    for clear in set(range(TINY.max_num_seqs)) - set(after):
        if free:
            yield added(clear, min(free)), f"new_block_rows[{count}]"
    for row, state in after.items():
        for block in (0, TINY.num_blocks, *state.table):
            yield added(row, block), f"new_block_ids[{count}]"
        missing = -(-TINY.max_model_len // TINY.block_size) - len(state.table)
        if len(free) > missing:
            extra = sorted(free)[: missing + 1]
            yield (
                replace(
                    plan,
                    new_block_rows=np.append(rows, [row] * len(extra)).astype(np.int32),
                    new_block_ids=np.append(ids, extra).astype(np.int32),
                ),
                f"new_block_rows[{count + missing}]",
            )


def within_budget(plan: StepPlan, field: str) -> str:
    """The field at fault in a plan with prefills: that one, unless the plan has more tokens than a step may."""
    num_tokens = len(plan.decode_rows) + sum(max(prefill.num_tokens, 0) for prefill in plan.prefills)
    return field if num_tokens <= TINY.max_num_batched_tokens else "prefills"


def broken_prefills(plan: StepPlan, before: Rows, after: Rows) -> Broken:
    for index, prefill in enumerate(plan.prefills):
        name, state = f"prefills[{index}]", after[prefill.row]
        for row in {-1, TINY.max_num_seqs} | set(range(TINY.max_num_seqs)) - set(after):
            yield changed_prefill(plan, index, row=row), f"{name}.row"
        for first in (prefill.first_position - 1, prefill.first_position + 1):
            yield changed_prefill(plan, index, first_position=first), f"{name}.first_position"
        past = len(state.known) - prefill.first_position + 1
        for count in (0, -1, past):
            changed = changed_prefill(plan, index, num_tokens=count)
            yield changed, within_budget(changed, f"{name}.num_tokens")
        yield changed_prefill(plan, index, samples=not prefill.samples), f"{name}.samples"
        again = Prefill(prefill.row, state.length, 1, False)
        twice = replace(plan, prefills=(*plan.prefills, again), decode_rows=ints(), decode_row_steps=ints())
        yield twice, within_budget(twice, f"prefills[{len(plan.prefills)}].row")
        decoding = replace(
            plan,
            decode_rows=np.append(plan.decode_rows, prefill.row),
            decode_row_steps=np.append(plan.decode_row_steps, 1),
        )
        yield decoding, within_budget(decoding, f"decode_rows[{len(plan.decode_rows)}]")
    without = replace(plan, new_block_rows=ints(), new_block_ids=ints())
    for index, prefill in enumerate(plan.prefills):
        if prefill.row in plan.new_block_rows:
            yield without, f"prefills[{index}].num_tokens"
            break


def broken_decodes(plan: StepPlan, before: Rows, after: Rows) -> Broken:
    rows, count = plan.decode_rows, len(plan.decode_rows)

    def added(row: int) -> StepPlan:
        steps = np.append(plan.decode_row_steps, 1)
        return replace(plan, decode_rows=np.append(rows, row), decode_row_steps=steps)

    prefilling = {prefill.row for prefill in plan.prefills}
    idle = {row for row, state in after.items() if not state.sampled} - prefilling
    for row in {-1, TINY.max_num_seqs} | set(range(TINY.max_num_seqs)) - set(after) | idle:
        yield added(row), f"decode_rows[{count}]"
    for index in range(count):
        yield added(rows[index]), f"decode_rows[{count}]"
        for steps in (0, plan.num_decode_steps + 1):
            changed = put(plan.decode_row_steps, index, steps)
            yield replace(plan, decode_row_steps=changed), f"decode_row_steps[{index}]"
    if len(plan.new_block_rows) and not plan.prefills:
        without = replace(plan, new_block_rows=ints(), new_block_ids=ints())
        first = min(rows.tolist().index(row) for row in plan.new_block_rows if row in rows)
        yield without, f"decode_rows[{first}]"


def broken_masks(plan: StepPlan, before: Rows, after: Rows) -> Broken:
    sampling = set(plan.decode_rows.tolist()) | {entry.row for entry in plan.prefills if entry.samples}
    if plan.num_decode_steps == 1:
        for row in {-1, TINY.max_num_seqs} | set(range(TINY.max_num_seqs)) - sampling:
            yield replace(plan, masks=(RowMask(row, FULL),)), "masks[0].row"
        for row in sampling:
            yield replace(plan, masks=(RowMask(row, FULL), RowMask(row, FULL))), "masks[1].row"
            yield replace(plan, masks=(RowMask(row, FULL[1:]),)), "masks[0].mask"
    elif sampling:
        yield replace(plan, masks=(RowMask(min(sampling), FULL),)), "num_decode_steps"


BREAKERS: list[Callable[[StepPlan, Rows, Rows], Broken]] = [
    broken_header,
    broken_releases,
    broken_starts,
    broken_new_blocks,
    broken_prefills,
    broken_decodes,
    broken_masks,
]


def copied(rows: Rows) -> Rows:
    return {row: replace(state, table=list(state.table)) for row, state in rows.items()}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_plan_of_a_correct_planner_is_accepted_with_the_right_positions(seed: int) -> None:
    planner, table = Planner(random.Random(seed)), RowTable(TINY)
    for _ in range(60):
        plan = planner.next_plan()
        step = table.apply(plan)
        ends = [planner.rows[row].length for row in plan.decode_rows.tolist()]
        assert (step.decode_positions + plan.decode_row_steps).tolist() == ends


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), num_plans=st.integers(1, 25))
@pytest.mark.parametrize("breaker", BREAKERS, ids=lambda breaker: breaker.__name__)
def test_a_plan_with_one_rule_broken_is_refused_at_the_field(
    breaker: Callable[[StepPlan, Rows, Rows], Broken], seed: int, num_plans: int
) -> None:
    planner = Planner(random.Random(seed))
    plans = [planner.next_plan() for _ in range(num_plans)]
    before = copied(planner.rows)
    plan = planner.next_plan()
    broken = list(breaker(plan, before, copied(planner.rows)))
    for bad, field in random.Random(seed).sample(broken, min(len(broken), 4)):
        table = RowTable(TINY)
        for earlier in plans:
            table.apply(earlier)
        assert failure_of(table, bad).field == field, bad
    table = RowTable(TINY)
    for earlier in [*plans, plan]:
        table.apply(earlier)


def started(*starts: Any, prefills: tuple[Prefill, ...] = ()) -> RowTable:
    table = RowTable(TINY)
    table.apply(make_plan(1, starts=starts, prefills=prefills))
    return table


def test_a_prefix_may_be_shared_with_a_row_that_the_same_plan_starts_to_write_it() -> None:
    writer, reader = (
        make_start(0, range(9), [1, 2, 3]),
        make_start(1, range(9), [1, 2, 4], num_computed_tokens=8),
    )
    table = RowTable(TINY)
    table.apply(
        make_plan(1, starts=(writer, reader), prefills=(Prefill(0, 0, 9, True), Prefill(1, 8, 1, True)))
    )


@pytest.mark.parametrize("num_computed", [0, 8])
def test_a_row_cannot_write_a_block_that_a_live_row_reads(num_computed: int) -> None:
    table = started(make_start(0, range(9), [1, 2, 3], num_computed_tokens=8))
    start = make_start(1, range(13), [4, 5, 1], num_computed_tokens=num_computed)
    failure = failure_of(table, make_plan(2, starts=(start,)))
    assert (failure.field, failure.rows) == ("starts[0].block_table[2]", (1,))


def test_a_block_stays_unwritable_until_its_last_reader_leaves() -> None:
    shared = make_start(0, range(9), [1, 2, 3])
    readers = [make_start(row, range(9), [1, 2, 3 + row], num_computed_tokens=8) for row in (1, 2)]
    for left, allowed in ([0], False), ([0, 1], False), ([0, 1, 2], True), ([1, 2], False):
        table = started(shared, *readers)
        table.apply(make_plan(2, release_rows=ints(*left)))
        plan = make_plan(3, starts=(make_start(4, [1], [1]),))
        if allowed:
            table.apply(plan)
        else:
            assert failure_of(table, plan).field == "starts[0].block_table[0]"


def test_one_plan_may_release_and_start_the_same_row_with_the_same_blocks() -> None:
    table = started(make_start(0, range(9), [1, 2, 3]))
    step = make_plan(
        2, release_rows=ints(0), starts=(make_start(0, range(5), [3, 2]),), prefills=(Prefill(0, 0, 5, True),)
    )
    table.apply(step)


def test_several_blocks_of_one_plan_go_to_their_rows_in_order() -> None:
    table = started(make_start(0, range(20), []), make_start(1, range(20), [9]))
    plan = make_plan(
        2,
        new_block_rows=ints(0, 1, 0, 0, 1),
        new_block_ids=ints(1, 2, 3, 4, 5),
        prefills=(Prefill(0, 0, 12, False), Prefill(1, 0, 12, False)),
    )
    table.apply(plan)
    # Releasing frees exactly these: block 4 is the third of row 0.
    table.apply(make_plan(3, release_rows=ints(0)))
    table.apply(make_plan(4, starts=(make_start(2, range(9), [1, 3, 4]),)))
    assert (
        failure_of(table, make_plan(5, new_block_rows=ints(2), new_block_ids=ints(5))).field
        == "new_block_ids[0]"
    )


def test_no_more_tokens_than_a_step_may_compute() -> None:
    blocks = [list(range(first, first + 5)) for first in (1, 6, 11)]
    rows = [make_start(row, range(20), blocks[row]) for row in (0, 1)]
    table = started(*rows, make_start(2, [1], blocks[2]), prefills=(Prefill(2, 0, 1, True),))
    # 40 is the most: two prefills of 20, and no decode row with them.
    prefills = (Prefill(0, 0, 20, True), Prefill(1, 0, 20, True))
    assert failure_of(table, make_plan(2, prefills=prefills, decode_rows=ints(2))).field == "prefills"
    started(*rows).apply(make_plan(2, prefills=prefills))


def test_a_row_decodes_up_to_the_last_position_of_the_model_and_not_past_it() -> None:
    blocks = list(range(1, 9))
    table = started(make_start(0, [1] * 28, blocks), prefills=(Prefill(0, 0, 28, True),))
    # It has 29 tokens; the thirtieth, the model's last, is sampled behind position 28.
    step = table.apply(make_plan(2, decode_rows=ints(0)))
    assert step.decode_positions.tolist() == [28]
    failure = failure_of(table, make_plan(3, decode_rows=ints(0)))
    assert (failure.field, failure.rows) == ("decode_rows[0]", (0,))


def test_the_sub_steps_of_a_decode_row_may_not_add_up_past_the_model_s_length() -> None:
    for steps, fits in ((2, True), (3, False)):
        table = started(make_start(0, [1] * 27, range(1, 9)), prefills=(Prefill(0, 0, 27, True),))
        plan = make_plan(2, decode_rows=ints(0), num_decode_steps=steps)
        if fits:
            table.apply(plan)
        else:
            assert failure_of(table, plan).field == "decode_rows[0]"


def test_a_prefill_may_not_sample_a_token_past_the_model_s_length() -> None:
    started(make_start(0, [1] * 29, range(1, 9)), prefills=(Prefill(0, 0, 29, True),))
    table = started(make_start(2, [1] * 30, range(1, 9)), prefills=(Prefill(2, 0, 29, False),))
    failure = failure_of(table, make_plan(2, prefills=(Prefill(2, 29, 1, True),)))
    assert (failure.field, failure.rows) == ("prefills[0].num_tokens", (2,))


def test_prompt_logprobs_need_the_whole_prompt_computed() -> None:
    sampling = RowSampling(prompt_logprobs=1)
    start = make_start(0, range(9), [1, 2], num_computed_tokens=4, sampling=sampling)
    failure = failure_of(RowTable(TINY), make_plan(1, starts=(start,)))
    assert failure.field == "starts[0].sampling.prompt_logprobs"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", -0.5),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_p", float("nan")),
        ("min_p", -0.1),
        ("min_p", float("nan")),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("nan")),
        ("frequency_penalty", float("inf")),
        ("presence_penalty", float("nan")),
        ("frequency_penalty", -1.1e4),
        ("frequency_penalty", -3e38),
        ("presence_penalty", 1.1e4),
        ("min_tokens", -1),
        ("min_tokens", TINY.max_model_len + 1),
        ("min_tokens", 2**31 - 1),
        ("logprobs", 21),
        ("logprobs", -1),
        ("prompt_logprobs", 21),
        ("logit_bias", np.ones(2, np.float32)),
    ],
)
def test_a_sampling_parameter_out_of_range_is_named(name: str, value: Any) -> None:
    start = make_start(4, [1], [1], sampling=replace(RowSampling(), **{name: value}))
    failure = failure_of(RowTable(TINY), make_plan(1, starts=(start,)))
    assert (failure.field, failure.rows) == (f"starts[0].sampling.{name}", (4,))


def test_sampling_parameters_at_the_ends_of_their_ranges_are_accepted() -> None:
    lowest = RowSampling(min_p=0.0, frequency_penalty=-1e4, presence_penalty=-1e4, logprobs=0)
    highest = RowSampling(
        top_k=2**31 - 1,
        min_p=1.0,
        repetition_penalty=3e38,
        frequency_penalty=1e4,
        presence_penalty=1e4,
        min_tokens=TINY.max_model_len,
        logprobs=20,
    )
    starts = (make_start(0, [1], [1], sampling=lowest), make_start(1, [1], [2], sampling=highest))
    RowTable(TINY).apply(make_plan(1, starts=starts))


@pytest.mark.parametrize(
    ("ids", "bias", "field"),
    [
        (ints(50), [1.0], "logit_bias_ids[0]"),
        (ints(3, 3), [1.0, 1.0], "logit_bias_ids[1]"),
        (ints(3, 4), [1.0, float("nan")], "logit_bias[1]"),
        (ints(3, 4), [1.0], "logit_bias"),
    ],
)
def test_a_bad_logit_bias_is_named(ids: np.ndarray, bias: list[float], field: str) -> None:
    sampling = RowSampling(logit_bias_ids=ids, logit_bias=np.array(bias, np.float32))
    plan = make_plan(1, starts=(make_start(3, [1], [1], sampling=sampling),))
    failure = failure_of(RowTable(TINY), plan)
    assert (failure.field, failure.rows) == (f"starts[0].sampling.{field}", (3,))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"token_ids": ints(1, 50)}, "token_ids[1]"),
        ({"block_table": ints(1, 99)}, "block_table[1]"),
        ({"block_table": ints(1, 2, 1)}, "block_table[2]"),
        ({"sampling": RowSampling(end_token_ids=ints(50))}, "sampling.end_token_ids[0]"),
    ],
)
def test_an_id_of_a_start_that_is_out_of_range_or_repeated_is_blamed_on_its_row(
    changes: dict[str, Any], field: str
) -> None:
    plan = make_plan(1, starts=(make_start(0, [1], [3]), replace(make_start(5, [1], [1]), **changes)))
    failure = failure_of(RowTable(TINY), plan)
    assert (failure.field, failure.rows) == (f"starts[1].{field}", (5,))
