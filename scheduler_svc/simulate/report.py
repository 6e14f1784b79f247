"""What a simulation says, as figures and as a table.

TTFT is from a request's arrival at the scheduler to the result that brings its first token, TPOT (latency - TTFT) /
(output tokens - 1) for requests of two tokens or more, ITL each gap between two tokens, latency up to the last token.
What lies between client and scheduler takes no time here.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler_svc.simulate.simulator import Simulation

Float64Array = NDArray[np.float64]
PERCENTILES = (50, 90, 99)


def latencies(simulation: Simulation) -> dict[str, Float64Array]:
    """All values of `ttft_ms`, `tpot_ms`, `itl_ms` and `latency_ms`; empty where there are none."""
    counts = simulation.num_tokens
    times_ms, arrival_ms = simulation.token_ns * 1e-6, simulation.arrival_ns * 1e-6
    ends = np.cumsum(counts)
    first, last = times_ms[ends - counts], times_ms[ends - 1]
    several = counts > 1
    gaps = np.diff(times_ms)
    # The gap before each sequence's first token leads over from another sequence.
    itl = np.delete(gaps, ends[:-1] - 1) if len(ends) else gaps
    return {
        "ttft_ms": first - arrival_ms,
        "tpot_ms": (last - first)[several] / (counts[several] - 1),
        "itl_ms": itl,
        "latency_ms": last - arrival_ms,
    }


def figures(simulation: Simulation) -> dict[str, Any]:
    """Everything that is reported, ready for JSON; what has no value is None."""
    stats, occupancy = simulation.stats, simulation.occupancy
    seconds = simulation.duration_ns * 1e-9
    duration_ns = simulation.duration_ns
    num_requests, num_output = len(simulation.arrival_ns), len(simulation.token_ns)
    return {
        "num_requests": num_requests,
        "num_refused": len(simulation.refused),
        "duration_seconds": seconds,
        **{name: _summary(values) for name, values in latencies(simulation).items()},
        "requests_per_second": _share(num_requests, seconds),
        "output_tokens_per_second": _share(num_output, seconds),
        "prompt_tokens_per_second": _share(int(simulation.num_prompt_tokens.sum()), seconds),
        "num_output_tokens": num_output,
        "num_late_tokens": stats.num_late_tokens,
        "num_padded_tokens": stats.num_padded_tokens,
        "num_preemptions": stats.num_preemptions,
        "num_prefix_query_tokens": stats.num_prefix_query_tokens,
        "num_prefix_hit_tokens": stats.num_prefix_hit_tokens,
        "prefix_hit_rate": _share(stats.num_prefix_hit_tokens, stats.num_prefix_query_tokens),
        "num_steps": stats.num_steps,
        "device_idle_share": _share(duration_ns - simulation.device_busy_ns, duration_ns),
        "no_request_share": _share(occupancy.empty_ns, duration_ns),
        "mean_running": _share(occupancy.running_ns, duration_ns),
        "mean_waiting": _share(occupancy.waiting_ns, duration_ns),
        "mean_padding_rows": _share(occupancy.padding_ns, duration_ns),
        "mean_held_block_share": _share(occupancy.held_block_ns, duration_ns * stats.num_total_blocks),
        "mean_unused_slots": _share(occupancy.unused_slot_ns, duration_ns),
        "unused_slot_share": _share(
            occupancy.unused_slot_ns, occupancy.held_block_ns * simulation.block_size
        ),
    }


def _summary(values: Float64Array) -> dict[str, float | None]:
    names = ["mean", *(f"p{percentile}" for percentile in PERCENTILES), "max"]
    if not len(values):
        return dict.fromkeys(names)
    found = [values.mean(), *np.percentile(values, PERCENTILES), values.max()]
    return dict(zip(names, map(float, found), strict=True))


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def table(report: dict[str, Any]) -> str:
    """The figures for people, several lines."""
    lines = [f"{'':<12}{'mean':>12}{'p50':>12}{'p90':>12}{'p99':>12}{'max':>12}"]
    for name, label in (
        ("ttft", "TTFT ms"),
        ("tpot", "TPOT ms"),
        ("itl", "ITL ms"),
        ("latency", "latency ms"),
    ):
        values = "".join(f"{_text(value, ',.2f'):>12}" for value in report[f"{name}_ms"].values())
        lines.append(f"{label:<12}{values}")
    rate, tokens = report["requests_per_second"], report["output_tokens_per_second"]
    prompt = _text(report["prompt_tokens_per_second"], ",.0f")
    running, waiting = _text(report["mean_running"], ".1f"), _text(report["mean_waiting"], ".1f")
    rows = {
        "throughput": f"{_text(rate, ',.2f')} requests/s, {_text(tokens, ',.0f')} output tokens/s,"
        f" {prompt} prompt tokens/s",
        "requests": f"{report['num_requests']:,} served, {report['num_refused']:,} refused;"
        f" on average {running} running, {waiting} waiting",
        "preemptions": f"{report['num_preemptions']:,}",
        "prefix hits": f"{_text(report['prefix_hit_rate'], '.1%')} of the prompt tokens looked up",
        "blocks held": f"{_text(report['mean_held_block_share'], '.1%')} on average,"
        f" {_text(report['unused_slot_share'], '.1%')} of their slots unused",
        "device idle": f"{_text(report['device_idle_share'], '.1%')} of the time;"
        f" no request was there for {_text(report['no_request_share'], '.1%')}",
        "steps": f"{report['num_steps']:,} in {report['duration_seconds']:,.1f} s of virtual time;"
        f" {report['num_late_tokens']:,} tokens were late, {report['num_padded_tokens']:,} padding",
    }
    return "\n".join([*lines, *(f"{label:<12}  {text}" for label, text in rows.items())])


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
