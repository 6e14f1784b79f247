"""What two readings of a load say of the steps between them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.report import percentile
from benchmarks.server import BenchmarkError
from benchmarks.step_budget import steady_window
from benchmarks.steps import steps_between
from nanoserve.v1 import admin_pb2


def load(
    num_steps: int, num_output_tokens: int, device_seconds: float = 0.0, idle_seconds: float = 0.0
) -> admin_pb2.Load:
    totals = admin_pb2.StepTotals(device_seconds=device_seconds, idle_seconds=idle_seconds)
    return admin_pb2.Load(num_steps=num_steps, num_output_tokens=num_output_tokens, step_totals=totals)


def test_times_are_means_of_the_steps_between_the_readings() -> None:
    steps = steps_between(load(10, 100, 1.0, 5.0), load(30, 180, 1.06, 5.02))
    assert (steps.num_steps, steps.tokens_per_step) == (20, 4.0)
    assert steps.device_ms == pytest.approx(3.0)
    assert steps.idle_share == pytest.approx(0.25)


def test_a_server_without_steps_has_no_shares() -> None:
    steps = steps_between(admin_pb2.Load(), admin_pb2.Load())
    assert (steps.num_steps, steps.tokens_per_step, steps.idle_share) == (0, 0.0, 0.0)


def test_the_steady_window_has_neither_prompts_nor_ends() -> None:
    tokens = [0, 3, 8, 48, 88, 128, 140]  # the batch is 4: a step of 10 gives 40
    readings = [(0.1 * index, load(10 * index, total)) for index, total in enumerate(tokens)]
    (begin, first), (end, last) = steady_window(readings, batch=4)
    assert (first.num_output_tokens, last.num_output_tokens) == (8, 128)
    assert (begin, end) == (pytest.approx(0.2), pytest.approx(0.5))


def test_the_steady_window_of_one_sequence_leaves_its_prompt_out() -> None:
    readings = [(0.1 * index, load(total, total)) for index, total in enumerate([7, 17, 27])]
    (_, first), (_, last) = steady_window(readings, batch=1)
    assert (first.num_steps, last.num_steps) == (17, 27)


def test_where_nothing_was_steady_that_is_said() -> None:
    readings = [(0.0, load(0, 0)), (0.1, load(10, 12)), (0.2, load(20, 24))]
    with pytest.raises(BenchmarkError, match="--output-tokens"):
        steady_window(readings, batch=4)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0.01, 1.0))
def test_a_percentile_is_the_least_value_that_covers_its_share(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values) + 1e-9
