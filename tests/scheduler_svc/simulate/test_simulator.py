"""The simulator: exact on what can be computed by hand, and what must hold of every run."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from simulate_harness import COST, MS, US, play

from executor_svc.virtual import virtual_tokens
from scheduler_svc.simulate.report import figures, latencies
from scheduler_svc.simulate.trace import TraceRequest

requests_at_any_time = st.lists(
    st.builds(
        TraceRequest,
        arrival_seconds=st.integers(0, 100).map(lambda count: count / 1000),
        num_prompt_tokens=st.integers(1, 40),
        num_output_tokens=st.integers(1, 12),
        prefix_id=st.none(),
    ),
    min_size=1,
    max_size=12,
).map(lambda requests: sorted(requests, key=lambda request: request.arrival_seconds))


def step_ns(num_tokens: int, num_context_tokens: int) -> int:
    return int(COST.step_ns + COST.token_ns * num_tokens + COST.kv_token_ns * num_context_tokens)


def decode_ns(num_prompt: int, num_output: int) -> list[int]:
    """The decode steps of a request alone: the k-th computes position num_prompt + k - 1 and reads those up to it."""
    return [step_ns(1, num_prompt + k) for k in range(1, num_output)]


def test_one_request_at_depth_1_takes_a_round_trip_a_step() -> None:
    latency, prompt, output = 250 * US, 20, 6
    simulation, _ = play([TraceRequest(7.0, prompt, output)], depth=1, latency_ns=latency)
    first = 2 * latency + step_ns(prompt, prompt)
    ends = first + np.cumsum([0, *(2 * latency + time for time in decode_ns(prompt, output))])
    assert simulation.arrival_ns.tolist() == [0]
    assert simulation.token_ns.tolist() == ends.tolist()
    values = latencies(simulation)
    assert values["ttft_ms"] == pytest.approx([first / MS], rel=1e-12)
    assert values["tpot_ms"] == pytest.approx([(ends[-1] - first) / MS / (output - 1)], rel=1e-12)
    assert values["itl_ms"] == pytest.approx(np.diff(ends) / MS, rel=1e-9)
    assert values["latency_ms"] == pytest.approx([ends[-1] / MS], rel=1e-12)
    report = figures(simulation)
    assert report["device_idle_share"] == pytest.approx(2 * latency * output / ends[-1])
    assert report["output_tokens_per_second"] == pytest.approx(output / ends[-1] * 1e9)
    assert (report["mean_running"], report["mean_waiting"], report["no_request_share"]) == (1, 0, 0)


def test_one_request_at_depth_2_never_waits_for_the_boundary_after_its_first_step() -> None:
    latency, prompt, output = 250 * US, 20, 6
    simulation, _ = play([TraceRequest(0.0, prompt, output)], depth=2, latency_ns=latency)
    first = 2 * latency + step_ns(prompt, prompt)
    ends = first + np.cumsum([0, *decode_ns(prompt, output)])
    assert simulation.token_ns.tolist() == ends.tolist()
    busy = step_ns(prompt, prompt) + sum(decode_ns(prompt, output))
    assert (simulation.device_busy_ns, simulation.duration_ns) == (busy, busy + 2 * latency)


def test_an_end_token_is_learnt_a_step_late_at_depth_2_and_that_step_is_the_devices_loss() -> None:
    simulation, _ = play([TraceRequest(0.0, 20, 6)], depth=2, slack=2)
    foreseen, _ = play([TraceRequest(0.0, 20, 6)], depth=2)
    assert simulation.token_ns.tolist() == foreseen.token_ns.tolist()
    assert simulation.device_busy_ns - foreseen.device_busy_ns == step_ns(1, 26)
    assert (simulation.stats.num_late_tokens, foreseen.stats.num_late_tokens) == (1, 0)


def test_a_long_prompt_is_computed_in_chunks() -> None:
    simulation, _ = play([TraceRequest(0.0, 20, 1)], max_num_batched_tokens=8, max_num_seqs=4)
    assert simulation.token_ns.tolist() == [step_ns(8, 8) + step_ns(8, 16) + step_ns(4, 20)]


def test_a_shared_prefix_is_computed_once() -> None:
    """The second request arrives when the first is done; 16 of its 20 tokens are in four cached blocks."""
    requests = [
        TraceRequest(0.0, 20, 1, prefix_id="system", num_prefix_tokens=18),
        TraceRequest(1.0, 20, 1, prefix_id="system", num_prefix_tokens=18),
    ]
    simulation, _ = play(requests)
    assert latencies(simulation)["ttft_ms"] == pytest.approx([step_ns(20, 20) / MS, step_ns(4, 20) / MS])
    assert figures(simulation)["prefix_hit_rate"] == 16 / 40
    assert figures(simulation)["no_request_share"] == pytest.approx(1 - 2 * 4.2 / 1004, abs=1e-3)


def test_the_second_of_two_requests_waits_for_the_only_row() -> None:
    requests = [TraceRequest(0.0, 4, 3), TraceRequest(0.001, 4, 1)]
    simulation, _ = play(requests, max_num_seqs=1)
    first_ends = step_ns(4, 4) + sum(decode_ns(4, 3))
    assert simulation.token_ns.tolist()[-2:] == [first_ends, first_ends + step_ns(4, 4)]
    assert simulation.occupancy.waiting_ns == first_ends - MS


def test_a_request_that_can_never_fit_is_refused_and_the_others_go_on() -> None:
    requests = [TraceRequest(0.0, 600, 4), TraceRequest(0.0, 10, 4)]
    simulation, _ = play(requests)
    assert len(simulation.refused) == 1
    assert simulation.refused[0].startswith("request 0: prompt: ")
    assert simulation.num_tokens.tolist() == [4]


@settings(deadline=None, max_examples=60)
@given(
    requests=requests_at_any_time,
    depth=st.integers(1, 4),
    latency_ns=st.sampled_from([0, 300 * US, 9 * MS]),
    late=st.booleans(),
    rows=st.integers(1, 6),
    num_blocks=st.integers(14, 40),
)
def test_every_request_gets_its_own_tokens_and_littles_law_holds(
    requests: list[TraceRequest], depth: int, latency_ns: int, late: bool, rows: int, num_blocks: int
) -> None:
    """In caches so small that sequences are preempted, with every KV read checked."""
    simulation, workload = play(
        requests,
        depth=depth,
        latency_ns=latency_ns,
        slack=depth if late else 0,
        max_num_seqs=rows,
        num_blocks=num_blocks,
        max_num_batched_tokens=16,
    )
    assert simulation.refused == ()
    assert simulation.num_tokens.tolist() == [request.num_output_tokens for request in requests]
    ends = np.cumsum(simulation.num_tokens)
    vocab_size = workload.model.vocab_size
    for index, (request, tokens) in enumerate(
        zip(requests, np.split(simulation.token_ids, ends[:-1]), strict=True)
    ):
        positions = request.num_prompt_tokens + np.arange(request.num_output_tokens, dtype=np.int32)
        seeds = np.full(len(positions), index, np.uint64)
        expected = virtual_tokens(seeds, positions, vocab_size - late)
        ends_by_token = late and workload.arrivals[index].request.max_tokens > request.num_output_tokens
        if ends_by_token:
            expected[-1] = vocab_size - 1
        assert tokens.tolist() == expected.tolist()
    # The area under the number in the system, measured at the core, is the sum of the times in the system.
    times_in_system = simulation.token_ns[ends - 1] - simulation.arrival_ns
    assert simulation.occupancy.running_ns + simulation.occupancy.waiting_ns == times_in_system.sum()
    gaps = [np.diff(tokens) for tokens in np.split(simulation.token_ns, ends[:-1])]
    assert all((gap > 0).all() for gap in gaps)
    values = latencies(simulation)
    assert values["itl_ms"] == pytest.approx(np.concatenate(gaps) / MS, rel=1e-6)
    assert values["tpot_ms"] == pytest.approx([gap.mean() / MS for gap in gaps if len(gap)], rel=1e-6)


@settings(deadline=None, max_examples=60)
@given(requests=requests_at_any_time, latency_ns=st.sampled_from([1, 300 * US, 9 * MS]))
def test_depth_2_is_never_slower_where_depth_changes_no_plan(
    requests: list[TraceRequest], latency_ns: int
) -> None:
    """All there at once, and room for all: then both depths compute the same steps, one waits for the boundary."""
    at_once = [
        TraceRequest(0.0, request.num_prompt_tokens, request.num_output_tokens) for request in requests
    ]
    one, _ = play(at_once, depth=1, latency_ns=latency_ns)
    two, _ = play(at_once, depth=2, latency_ns=latency_ns)
    assert one.stats.num_steps == two.stats.num_steps
    assert (two.token_ns <= one.token_ns).all()
    assert two.duration_ns < one.duration_ns or one.stats.num_steps == 1


def test_several_decode_steps_a_plan_cost_one_round_trip_and_stay_within_max_plan_ms() -> None:
    latency, prompt, output = 250 * US, 20, 17
    requests = [TraceRequest(0.0, prompt, output)]
    single, _ = play(requests, latency_ns=latency, max_num_decode_steps=8, max_plan_ms=0.0)
    several, _ = play(requests, latency_ns=latency, max_num_decode_steps=8, max_plan_ms=17.0)
    assert single.token_ids.tolist() == several.token_ids.tolist()
    assert (single.stats.num_steps, several.stats.num_steps) == (17, 17)
    # A step takes just over 4 ms, so four fit into 17: sixteen steps behind the prefill are four plans, not sixteen.
    assert single.duration_ns - several.duration_ns == 12 * 2 * latency


def test_aging_lets_a_low_class_pass_later_arrivals_of_a_higher_one() -> None:
    requests = [TraceRequest(0.0, 4, 2, priority=1), TraceRequest(0.001, 4, 2)]
    requests += [TraceRequest(0.002 + 0.004 * index, 4, 2, priority=1) for index in range(20)]
    strict, _ = play(requests, max_num_seqs=1)
    aging, _ = play(requests, max_num_seqs=1, priority_aging_seconds=0.02)
    low = [latencies(simulation)["ttft_ms"][1] for simulation in (strict, aging)]
    assert low[1] < low[0] / 2


def test_a_cache_too_small_for_all_preempts_and_a_larger_one_is_faster() -> None:
    requests = [TraceRequest(0.0, 30, 40) for _ in range(8)]
    small, _ = play(requests, num_blocks=40)
    large, _ = play(requests, num_blocks=400)
    assert small.stats.num_preemptions > 0 == large.stats.num_preemptions
    assert small.duration_ns > large.duration_ns


def test_figures_of_nothing_are_none_not_errors() -> None:
    report = figures(play([TraceRequest(0.0, 600, 4)])[0])
    assert report["ttft_ms"] == {"mean": None, "p50": None, "p90": None, "p99": None, "max": None}
    assert (report["num_requests"], report["num_refused"]) == (0, 1)
    assert report["requests_per_second"] is None
