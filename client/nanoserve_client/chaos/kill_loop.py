"""Trial: an executor that is killed 5 s after each time it serves again, under many streams.

All requests must complete, identical; the figure is what that adds to their latency.
"""

import asyncio
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence

from nanoserve_client.chaos.process_table import largest
from nanoserve_client.chaos.report import percentile
from nanoserve_client.chaos.stack import ServiceLog, Stack
from nanoserve_client.chaos.traffic import Sample, Traffic
from nanoserve_client.chaos.trials import TrialPlan, TrialResult, beside, on_stack
from nanoserve_client.chaos.verdicts import Kind

KILL_AFTER_SECONDS = 5.0
_BASELINE_SHARE = 0.25
_SIZES = ("--max-num-seqs=32", "--num-kv-blocks=401")


async def play(plan: TrialPlan, log: ServiceLog) -> TrialResult:
    """Plays the trial."""
    flags = plan.flags(executor=_SIZES)
    references = await plan.references(flags, log)

    async def on(stack: Stack) -> TrialResult:
        async with stack.client() as client:
            calm = Traffic(client, references, plan.executor.rules, plan.seed)
            await calm.run_lanes(plan.num_streams, plan.seconds * _BASELINE_SHARE)
            hit = Traffic(client, references, plan.executor.rules, plan.seed + 1)
            restarts: list[float] = []
            async with beside(_kill_again(stack, restarts)):
                await hit.run_lanes(plan.num_streams, plan.seconds)
        await stack.wait_serving()
        return _result(calm, hit, restarts)

    return await on_stack(flags, log, on)


async def _kill_again(stack: Stack, restarts: list[float]) -> None:
    """Kills the executor 5 s after each time it serves; notes how long it then took to serve again."""
    while True:
        await asyncio.sleep(KILL_AFTER_SECONDS)
        stack.executor.kill(largest(stack.executor.family))
        killed_at = time.monotonic()
        await stack.executor.wait_end(len(restarts))
        await stack.wait_serving_of(stack.executor)
        restarts.append(time.monotonic() - killed_at)


def _result(calm: Traffic, hit: Traffic, restarts: Sequence[float]) -> TrialResult:
    result = TrialResult()
    allowed = (Kind.IDENTICAL, Kind.NEAR_TIE)
    result.problems += calm.problems(allowed) + hit.problems(allowed)
    result.require(bool(restarts), "the executor was never killed: the trial is too short")
    added = _added_latency(calm.samples, hit.samples)
    figures = result.figures
    figures["kills"] = len(restarts)
    figures["restart p50 s"] = percentile(restarts, 0.5)
    for name, samples in (("undisturbed", calm.samples), ("killed", hit.samples)):
        seconds = [sample.seconds for sample in samples]
        figures[f"requests, {name}"] = len(samples)
        figures[f"tokens, {name}"] = sum(sample.num_tokens for sample in samples)
        for share in (0.5, 0.99):
            figures[f"latency p{share * 100:g} s, {name}"] = percentile(seconds, share)
    figures["identical, killed"] = len(hit.of_kind(Kind.IDENTICAL))
    figures["near ties, killed"] = len(hit.of_kind(Kind.NEAR_TIE))
    for share in (0.5, 0.99, 1.0):
        figures[f"added latency p{share * 100:g} s"] = percentile(added, share)
    figures["longest pause s"] = max((s.longest_pause_seconds for s in hit.samples), default=0.0)
    return result


def _added_latency(calm: Sequence[Sample], hit: Sequence[Sample]) -> list[float]:
    """Of each request under kills, the seconds above the median of its case without."""
    by_case: dict[int, list[float]] = defaultdict(list)
    for sample in calm:
        by_case[sample.case].append(sample.seconds)
    return [s.seconds - statistics.median(by_case[s.case]) for s in hit if s.case in by_case]
