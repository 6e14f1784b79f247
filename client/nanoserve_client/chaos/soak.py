"""Trial: mixed traffic with clients that leave, for long; what the services hold when idle must not grow.

It goes in rounds, each with a moment at its end when nothing runs: what is held then is compared.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import replace

from nanoserve_client.chaos import resources
from nanoserve_client.chaos.resources import SERVICES, Reading
from nanoserve_client.chaos.stack import ServiceLog, Stack
from nanoserve_client.chaos.traffic import Traffic
from nanoserve_client.chaos.trials import TrialPlan, TrialResult, on_stack
from nanoserve_client.chaos.verdicts import Kind

_NUM_ROUNDS = 20
_LEAST_ROUND_SECONDS = 3.0
# Rounds until caches, pools and interpreters have what they keep.
_WARM_UP_ROUNDS = 3
_LEAVE_SHARE = 0.3
_MOST_RSS_GROWTH, _MOST_DESCRIPTORS, _MOST_THREADS, _MOST_TASKS = 0.05, 8, 4, 4


async def play(plan: TrialPlan, log: ServiceLog) -> TrialResult:
    """Plays the trial."""
    has_metrics = importlib.util.find_spec("prometheus_client") is not None
    scheduler = ["--metrics-listen=127.0.0.1:0"] if has_metrics else []
    flags = plan.flags(scheduler=scheduler)
    references = await plan.references(flags, log)

    async def on(stack: Stack) -> TrialResult:
        result, readings = TrialResult(), list[Reading]()
        round_seconds = max(_LEAST_ROUND_SECONDS, plan.seconds / _NUM_ROUNDS)
        num_rounds = max(_WARM_UP_ROUNDS + 4, round(plan.seconds / round_seconds))
        async with stack.client() as client:
            for number in range(num_rounds):
                traffic = Traffic(client, references, plan.executor.rules, plan.seed + number, _LEAVE_SHARE)
                await traffic.run_lanes(plan.num_streams, round_seconds)
                _count(traffic, result)
                if left := await stack.wait_idle():
                    result.problems.append(f"round {number}: {left} when idle")
                metrics = stack.scheduler.addresses.get("metrics_listening")
                tasks = None if metrics is None else await resources.num_tasks(metrics)
                readings.append(replace(resources.read(stack), num_tasks=tasks))
        _judge(result, readings[_WARM_UP_ROUNDS:])
        return result

    return await on_stack(flags, log, on)


def _count(traffic: Traffic, result: TrialResult) -> None:
    figures = result.figures
    figures["requests"] = figures.get("requests", 0) + len(traffic.samples)
    figures["tokens"] = figures.get("tokens", 0) + sum(sample.num_tokens for sample in traffic.samples)
    for kind in (Kind.IDENTICAL, Kind.LEFT, Kind.NEAR_TIE):
        figures[kind.value] = figures.get(kind.value, 0) + len(traffic.of_kind(kind))
    result.problems += traffic.problems((Kind.IDENTICAL, Kind.LEFT, Kind.NEAR_TIE))


def _judge(result: TrialResult, readings: Sequence[Reading]) -> None:
    """Compares what was held at the first idle moments with what was at the last."""
    result.figures["idle moments compared"] = len(readings)
    for name, of in SERVICES.items():
        grown = resources.relative_growth([of(reading).rss_bytes for reading in readings])
        result.figures[f"RSS MiB, {name}"] = of(readings[-1]).rss_bytes / 2**20
        result.figures[f"RSS growth, {name}"] = grown
        result.require(grown <= _MOST_RSS_GROWTH, f"memory of the {name} grew by {grown:.1%}")
        for what, most, count in (
            ("descriptors", _MOST_DESCRIPTORS, [of(reading).num_descriptors for reading in readings]),
            ("threads", _MOST_THREADS, [of(reading).num_threads for reading in readings]),
        ):
            _require_flat(result, f"{what}, {name}", resources.growth(count), most)
    tasks = [reading.num_tasks for reading in readings if reading.num_tasks is not None]
    if tasks:
        _require_flat(result, "asyncio tasks, scheduler", resources.growth(tasks), _MOST_TASKS)


def _require_flat(result: TrialResult, what: str, grown: float, most: int) -> None:
    result.figures[f"growth of {what}"] = grown
    result.require(grown <= most, f"{what}: {grown:g} more")
