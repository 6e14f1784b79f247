"""Calibration: a known model is recovered, and the costs are the best that are not negative."""

import json

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from simulate_harness import make_session

from executor_svc.virtual import CostModel
from scheduler_svc.core.request import Request
from scheduler_svc.core.scheduler import CoreConfig, Scheduler
from scheduler_svc.simulate.calibrate import StepLog, calibrate, read_step_log
from scheduler_svc.simulate.device import VirtualDevice
from scheduler_svc.simulate.plans import to_executor, to_limits, to_result
from scheduler_svc.simulate.trace import TraceError

costs = st.sampled_from([0.0, 0.5, 3.0, 20_000.0, 5e6])


def random_steps(num_steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    num_tokens = random.integers(1, 2048, num_steps).astype(np.float64)
    return num_tokens, num_tokens + random.integers(0, 100_000, num_steps)


@given(fixed=costs, token=costs, kv_token=costs, seed=st.integers(0, 99))
def test_a_known_model_is_recovered(fixed: float, token: float, kv_token: float, seed: int) -> None:
    num_tokens, num_context = random_steps(40, seed)
    device_ns = fixed + token * num_tokens + kv_token * num_context
    found = calibrate(StepLog(num_tokens, num_context, device_ns))
    largest = device_ns.max()
    assert found.fixed_ns == pytest.approx(fixed, abs=1e-9 * largest)
    assert found.token_ns == pytest.approx(token, abs=1e-9 * largest / num_tokens.max())
    assert found.kv_token_ns == pytest.approx(kv_token, abs=1e-9 * largest / num_context.max())


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=30, max_size=30), st.integers(0, 99))
def test_the_costs_are_the_best_that_are_not_negative(noise: list[float], seed: int) -> None:
    """By the conditions of Karush, Kuhn and Tucker: no slope where a cost is positive, none down where it is 0."""
    num_tokens, num_context = random_steps(30, seed)
    device_ns = np.maximum(0, 1e6 * np.array(noise) + 2e6 - 100 * num_tokens)
    found = calibrate(StepLog(num_tokens, num_context, device_ns))
    features = np.stack([np.ones(30), num_tokens, num_context], axis=1)
    solution = np.array([found.fixed_ns, found.token_ns, found.kv_token_ns])
    scale = features.max(axis=0) * 30 * max(device_ns.max(), 1)
    slopes = features.T @ (features @ solution - device_ns) / scale
    assert (solution >= 0).all()
    assert (slopes >= -1e-9).all()
    assert slopes[solution > 0] == pytest.approx(0, abs=1e-9)


def test_the_log_of_the_virtual_device_gives_its_own_cost_model_back() -> None:
    """So what a core's plan says it computes and reads is what the device takes time for."""
    session = make_session(vocab_size=1000, max_num_decode_steps=1)
    core = Scheduler(CoreConfig(64, pipeline_depth=1), session)
    device = VirtualDevice(to_limits(session), CostModel(4e6, 8e3, 16.0), checked=True)
    random = np.random.default_rng(0)
    for length in (100, 5, 33, 70):
        core.add_request(Request("r", random.integers(0, 1000, length, np.int32), 20), 0.0)
    lines = []
    while (plan := core.schedule(0.0)) is not None:
        ((_, output),) = device.run(to_executor(plan), 0)
        core.update(to_result(plan.step_id, 0, True, output), 0.0)
        entry = {"num_tokens": plan.num_tokens, "num_context_tokens": plan.num_context_tokens}
        lines.append(json.dumps(entry | {"device_ns": output.device_ns, "step_id": plan.step_id}))
    found = calibrate(read_step_log("log", lines))
    assert found.num_steps == len(lines) > 20
    assert (found.fixed_ns, found.token_ns, found.kv_token_ns) == pytest.approx((4e6, 8e3, 16.0), rel=1e-6)
    assert found.median_error < 1e-9
    profile = found.profile("a test")
    assert (profile.fixed_ms, profile.token_us, profile.kv_token_ns) == pytest.approx((4, 8, 16), rel=1e-6)


@pytest.mark.parametrize(("num_tokens", "num_context"), [([1, 1, 1], [5, 6, 7]), ([1, 2, 3], [2, 4, 6])])
def test_steps_that_are_all_alike_are_refused(num_tokens: list[int], num_context: list[int]) -> None:
    columns = [np.array(column, np.float64) for column in (num_tokens, num_context, [9, 9, 9])]
    with pytest.raises(ValueError, match="too much alike"):
        calibrate(StepLog(*columns))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{}", "log:2: num_tokens: is missing"),
        (
            '{"num_tokens": 1, "num_context_tokens": -1, "device_ns": 1}',
            "log:2: num_context_tokens: must be in",
        ),
        ('{"num_tokens": 1, "num_context_tokens": 1, "device_ns": -1}', "log:2: device_ns: must be finite"),
        ("x", "log:2: not JSON"),
    ],
)
def test_a_bad_line_of_a_step_log_is_named(line: str, told: str) -> None:
    good = '{"num_tokens": 1, "num_context_tokens": 1, "device_ns": 1}'
    with pytest.raises(TraceError) as failure:
        read_step_log("log", [good, line])
    assert str(failure.value).startswith(told)


def test_an_empty_step_log_is_refused() -> None:
    with pytest.raises(TraceError, match=r"^log: has no step$"):
        read_step_log("log", [""])
