"""What the services hold while they run: memory, descriptors, threads, tasks; and whether that grows."""

import asyncio
import statistics
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from nanoserve_client.chaos.process_table import ProcessUse, use_of
from nanoserve_client.chaos.stack import Stack

_TASKS = "nanoserve:asyncio_tasks"
_SCRAPE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Reading:
    """What both services held at a moment; `scheduler` with its API workers."""

    time: float
    executor: ProcessUse
    scheduler: ProcessUse
    num_tasks: int | None = None
    """Of the scheduler's event loop; None where its metrics are not served."""


SERVICES: Mapping[str, Callable[[Reading], ProcessUse]] = {
    "executor": lambda reading: reading.executor,
    "scheduler": lambda reading: reading.scheduler,
}
"""What a reading says of each."""


def read(stack: Stack) -> Reading:
    """What they hold now; blocks for as long as /proc takes."""
    return Reading(time.monotonic(), use_of(stack.executor.family), use_of(stack.scheduler.family))


async def sample(stack: Stack, every_seconds: float, readings: list[Reading]) -> None:
    """Adds to `readings`, again and again, until cancelled."""
    while True:
        readings.append(read(stack))
        await asyncio.sleep(every_seconds)


async def num_tasks(metrics_address: str) -> int | None:
    """Tasks of the scheduler's event loop, from its metrics; None where they do not say."""

    def scrape() -> int | None:
        with urllib.request.urlopen(f"http://{metrics_address}/metrics", timeout=_SCRAPE_SECONDS) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(_TASKS):
                    return int(float(line.rpartition(" ")[2]))
        return None

    with suppress(OSError):
        return await asyncio.to_thread(scrape)
    return None


def growth(counts: Sequence[int]) -> float:
    """By how much the median of the last quarter of the counts is above that of the first."""
    quarter = max(1, len(counts) // 4)
    return statistics.median(counts[-quarter:]) - statistics.median(counts[:quarter])


def relative_growth(counts: Sequence[int]) -> float:
    """The same as a share of the first quarter's median, which is not 0."""
    return growth(counts) / statistics.median(counts[: max(1, len(counts) // 4)])
