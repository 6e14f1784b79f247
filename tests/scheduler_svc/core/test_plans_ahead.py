"""A plan made before a result is taken in, where the core says that it may be, is the plan made after it."""

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from core_harness import Harness
from hypothesis import given, settings

from scheduler_svc.core.config import CoreConfig
from scheduler_svc.core.request import Sampling
from scheduler_svc.core.step import ResultMismatch

configs = st.fixed_dictionaries(
    {
        "max_num_batched_tokens": st.integers(4, 16),
        "pipeline_depth": st.integers(1, 4),
        "enable_prefix_caching": st.booleans(),
        "batching": st.sampled_from(["continuous", "continuous", "continuous", "static", "naive"]),
        "kv_allocation": st.sampled_from(["paged", "paged", "contiguous"]),
    }
)
requests = st.fixed_dictionaries(
    {
        "prompt": st.lists(st.integers(0, 1), min_size=1, max_size=12),
        "max_tokens": st.sampled_from([3, 12, 20]),
        "n": st.integers(1, 2),
        "seed": st.integers(0, 2**64 - 1),
        "end_token_ids": st.lists(st.integers(0, 12), max_size=1).map(tuple),
        "priority": st.integers(0, 1),
        "sampling": st.sampled_from([Sampling(), Sampling(), Sampling(prompt_logprobs=1)]),
    }
)
steps = st.sampled_from([1, 1, 1, 4])
events = st.one_of(
    st.tuples(st.just("add"), requests),
    st.tuples(st.just("plan"), steps),
    st.tuples(st.just("deliver"), st.sampled_from([None, None, None, 0])),
    *[st.tuples(st.just("go on"), st.tuples(st.integers(1, 12), steps))] * 3,
    st.tuples(st.just("abort"), st.integers(0, 20)),
    st.tuples(st.just("settle"), st.none()),
    st.tuples(st.just("lose"), st.none()),
)


def play(harness: Harness, event: tuple[str, Any], *, ahead: bool) -> list[Any]:
    """Has an event happen; returns the plans and outputs that it brings."""
    match event:
        case ("add", request):
            return [harness.add(**request)]
        case ("plan", num_decode_steps):
            return [harness.plan(num_decode_steps)]
        case ("deliver", failed_row) if harness.under_way:
            return [harness.deliver(failed_row)]
        case ("go on", (count, num_decode_steps)):
            made: list[Any] = []
            for _ in range(min(count, len(harness.under_way))):
                made += harness.deliver_and_plan(num_decode_steps, ahead=ahead)
            return made
        case ("abort", number):
            live = [sequence_id for sequence_id, answer in harness.answers.items() if not answer.finish]
            if live:
                harness.abort(live[number % len(live)])
        case ("settle", None):
            harness.core.settle()
        case ("lose", None):
            harness.lose_session()
    return []


@given(
    configs,
    st.integers(9, 20),
    st.lists(requests, min_size=3, max_size=5),
    st.lists(events, min_size=5, max_size=25),
)
@settings(max_examples=200, deadline=None)
def test_two_cores_with_one_history_plan_the_same_before_and_after_results(
    config: dict[str, Any],
    num_blocks: int,
    first: list[dict[str, Any]],
    then: list[tuple[str, Any]],
):
    one, other = (
        Harness(CoreConfig(**config), num_blocks=num_blocks, max_num_batched_tokens=40) for _ in range(2)
    )
    going_on = [("plan", 1), ("go on", (12, 1))]
    history = [("add", request) for request in first] + 2 * going_on + then + 2 * going_on
    for event in history:
        # Frozen dataclasses of short arrays: what is written out is all there is.
        assert repr(play(one, event, ahead=True)) == repr(play(other, event, ahead=False))
        assert one.core.stats() == other.core.stats()
    one.run_to_end()
    one.check_answers()


def running(num_sequences: int = 3, **changes: Any) -> Harness:
    """Sequences that decode, with two plans under way."""
    harness = Harness(**changes)
    for _ in range(num_sequences):
        harness.add([1, 2, 3], max_tokens=9)
    harness.plan()
    harness.plan()
    return harness


def test_in_steady_decode_every_plan_may_be_made_ahead():
    harness = running()
    for _ in range(5):
        harness.deliver_and_plan(ahead=True)
    assert harness.num_plans_ahead == 5


def test_one_answered_plan_makes_room_for_one_more_and_not_for_two():
    harness = running()
    assert harness.plan() is None
    assert harness.plan(num_answered=1) is not None
    assert harness.plan(num_answered=1) is None


def test_a_sequence_that_waits_for_no_more_than_this_result_keeps_plans_from_being_made_ahead():
    harness = running(num_sequences=4)
    assert not harness.core.changes_plans(harness.under_way[0])
    harness.add([1, 2, 3], max_tokens=9)
    assert not harness.core.changes_plans(harness.under_way[0]), "no row is free, whatever the result says"
    harness.abort(1)
    assert harness.core.changes_plans(harness.under_way[0])


def test_a_result_that_answers_another_plan_is_found_before_anything_is_planned():
    harness = running()
    wrong = replace(harness.under_way[0], rows=harness.under_way[0].rows[::-1].copy())
    with pytest.raises(ResultMismatch):
        harness.core.changes_plans(wrong)
    failed = replace(harness.under_way[0], failed=np.array([True, False, False]))
    assert harness.core.changes_plans(failed)
    harness.run_to_end()
    harness.check_answers()


def test_a_plan_that_preempts_is_made_after_the_result():
    harness = Harness(num_blocks=5)
    for token in (1, 2):
        harness.add([token] * 7, max_tokens=9)
    harness.plan()
    harness.plan()
    assert harness.core.changes_plans(harness.under_way[0])
    harness.deliver_and_plan(ahead=True)
    assert (harness.num_plans_ahead, harness.core.stats().num_preemptions) == (0, 1)
    harness.run_to_end()
    harness.check_answers()
