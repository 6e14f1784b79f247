"""Trial: five times the load that the services can carry.

What is completed must stay within 10% of the peak, refusals must be quick, memory flat. Capacity is measured first,
with as many requests under way as the queue holds.
"""

import time
from collections.abc import Sequence

from nanoserve_client.chaos import resources
from nanoserve_client.chaos.report import percentile
from nanoserve_client.chaos.stack import ServiceLog, Stack
from nanoserve_client.chaos.traffic import Sample, Traffic
from nanoserve_client.chaos.trials import TrialPlan, TrialResult, beside, on_stack
from nanoserve_client.chaos.verdicts import Kind

OVERLOAD = 5.0
_PEAK_SHARE, _LEAST_PEAK_SECONDS = 0.25, 5.0
_WARM_UP_SHARE = 0.1
_LEAST_GOODPUT, _MOST_REFUSAL_SECONDS, _MOST_RSS_GROWTH = 0.9, 0.020, 0.05
_SAMPLE_SECONDS = 0.5
_COMPLETED = (Kind.IDENTICAL, Kind.NEAR_TIE)


async def play(plan: TrialPlan, log: ServiceLog) -> TrialResult:
    """Plays the trial."""
    # A virtual step so slow that neither this process nor the machine is what limits.
    executor = ("--virtual-step-ms=20",) if plan.executor.name == "virtual" else ()
    flags = plan.flags(executor=executor, scheduler=(f"--max-queue-size={plan.num_streams}",))
    references = await plan.references(flags, log)

    async def on(stack: Stack) -> TrialResult:
        async with stack.client() as client:
            seconds = max(_LEAST_PEAK_SECONDS, plan.seconds * _PEAK_SHARE)
            peak = Traffic(client, references, plan.executor.rules, plan.seed)
            began = time.monotonic()
            await peak.run_lanes(plan.num_streams, seconds)
            peak_window = (began + _WARM_UP_SHARE * seconds, began + seconds)
            rate = OVERLOAD * _per_second(peak.samples, peak_window, requests=True)
            readings: list[resources.Reading] = []
            loaded = Traffic(client, references, plan.executor.rules, plan.seed + 1)
            began = time.monotonic()
            async with beside(resources.sample(stack, _SAMPLE_SECONDS, readings)):
                await loaded.run_arrivals(rate, plan.seconds)
        window = (began + _WARM_UP_SHARE * plan.seconds, began + plan.seconds)
        settled = [reading for reading in readings if window[0] <= reading.time <= window[1]]
        result = _result(peak, loaded, peak_window, window, settled)
        result.figures["offered requests/s"] = rate
        return result

    return await on_stack(flags, log, on)


def _per_second(samples: Sequence[Sample], window: tuple[float, float], *, requests: bool = False) -> float:
    """Tokens, or requests, a second of streams that were completed within the window."""
    ended = [
        sample
        for sample in samples
        if sample.verdict.kind in _COMPLETED and window[0] <= sample.began + sample.seconds <= window[1]
    ]
    total = len(ended) if requests else sum(sample.num_tokens for sample in ended)
    return total / (window[1] - window[0])


def _result(
    peak: Traffic,
    loaded: Traffic,
    peak_window: tuple[float, float],
    window: tuple[float, float],
    readings: Sequence[resources.Reading],
) -> TrialResult:
    result = TrialResult()
    result.problems += peak.problems(_COMPLETED) + loaded.problems((*_COMPLETED, Kind.REFUSED))
    best, goodput = _per_second(peak.samples, peak_window), _per_second(loaded.samples, window)
    refusals = [sample.seconds for sample in loaded.of_kind(Kind.REFUSED)]
    figures = result.figures
    figures["peak tokens/s"], figures["goodput tokens/s"] = best, goodput
    figures["goodput / peak"] = goodput / best if best else 0.0
    figures["requests offered"], figures["requests refused"] = len(loaded.samples), len(refusals)
    for share in (0.5, 0.99, 1.0):
        figures[f"refusal p{share * 100:g} ms"] = 1e3 * percentile(refusals, share)
    for name, of in resources.SERVICES.items():
        grown = resources.relative_growth([of(reading).rss_bytes for reading in readings])
        figures[f"RSS growth, {name}"] = grown
        result.require(abs(grown) <= _MOST_RSS_GROWTH, f"memory of the {name} changed by {grown:.1%}")
    ratio = figures["goodput / peak"]
    result.require(ratio >= _LEAST_GOODPUT, f"goodput is {ratio:.2f} of the peak")
    result.require(bool(refusals), "nothing was refused: the load is no overload")
    slow = percentile(refusals, 0.99)
    result.require(not slow > _MOST_REFUSAL_SECONDS, f"1% of the refusals took over {1e3 * slow:.0f} ms")
    return result
