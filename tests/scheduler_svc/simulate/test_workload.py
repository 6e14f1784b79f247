"""Arrival rates and made-up prompts."""

from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from scheduler_svc.simulate.trace import Trace, TraceRequest
from scheduler_svc.simulate.workload import make_workload, with_rate


def requests_at(times: list[float]) -> tuple[TraceRequest, ...]:
    return tuple(TraceRequest(time, 8, 2) for time in times)


@given(
    gaps=st.lists(st.floats(0, 100), min_size=1, max_size=20).filter(lambda gaps: sum(gaps) > 1e-3),
    rate=st.floats(0.01, 1000),
)
def test_rescaled_arrivals_have_the_rate_and_keep_their_pattern(gaps: list[float], rate: float) -> None:
    times = np.cumsum([5.0, *gaps])
    found = np.array([r.arrival_seconds for r in with_rate(Trace(requests_at(times.tolist())), rate, 0)])
    assert found[0] == 0
    assert (len(times) - 1) / found[-1] == pytest.approx(rate)
    assert found / found[-1] == pytest.approx((times - 5) / (times[-1] - 5), abs=1e-9)


def test_arrivals_are_poisson_where_the_trace_has_none() -> None:
    trace = Trace(requests_at([0.0] * 20_000), has_arrivals=False)
    times = np.array([request.arrival_seconds for request in with_rate(trace, 50, seed=3)])
    gaps = np.diff(times)
    assert (gaps >= 0).all()
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.03)  # an exponential's mean
    again = [request.arrival_seconds for request in with_rate(trace, 50, seed=3)]
    other = [request.arrival_seconds for request in with_rate(trace, 50, seed=4)]
    assert times.tolist() == again != other


def test_a_trace_without_arrivals_needs_a_rate() -> None:
    with pytest.raises(ValueError, match=r"^--rate: is required"):
        with_rate(Trace(requests_at([0.0]), has_arrivals=False), None, 0)


@given(lengths=st.lists(st.integers(1, 60), min_size=2, max_size=8), data=st.data())
def test_a_prompt_depends_on_its_own_request_and_the_seed_alone(
    lengths: list[int], data: st.DataObject
) -> None:
    requests = [
        TraceRequest(
            0.0, length, 1, prefix_id="a" if shared else None, num_prefix_tokens=shared and (length + 1) // 2
        )
        for length, shared in zip(lengths, data.draw(st.lists(st.booleans(), min_size=8)), strict=False)
    ]
    everything = [arrival.request.prompt_token_ids for arrival in make_workload(requests, 1, 100).arrivals]
    fewer = [arrival.request.prompt_token_ids for arrival in make_workload(requests[:2], 1, 100).arrivals]
    for one, other in zip(everything, fewer, strict=False):
        assert one.tolist() == other.tolist()
    shared = [p[: r.num_prefix_tokens] for p, r in zip(everything, requests, strict=True) if r.prefix_id]
    for one, other in pairwise(shared):
        common = min(len(one), len(other))
        assert one[:common].tolist() == other[:common].tolist()
    assert [len(prompt) for prompt in everything] == lengths


def test_prompts_of_another_seed_or_without_a_common_prefix_differ() -> None:
    requests = [TraceRequest(0.0, 32, 1), TraceRequest(0.0, 32, 1)]
    (one, two), (other, _) = (
        [arrival.request.prompt_token_ids.tolist() for arrival in make_workload(requests, seed, 100).arrivals]
        for seed in (0, 1)
    )
    assert one != two
    assert one != other


def test_given_token_ids_are_kept_and_an_end_token_is_none_of_them() -> None:
    ids = (5, 1_000_000, 3)
    workload = make_workload([TraceRequest(2.5, 3, 4, prompt_token_ids=ids)], 0, 100, slack=2)
    (arrival,) = workload.arrivals
    assert arrival.time_ns == 0
    assert tuple(arrival.request.prompt_token_ids.tolist()) == ids
    assert arrival.request.end_token_ids == (1_000_001,)
    assert arrival.request.max_tokens == 6
