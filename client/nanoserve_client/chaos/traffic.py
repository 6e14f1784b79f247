"""Requests without end: lanes that each ask one after the other, or arrivals at a rate of their own."""

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from nanoserve_client.async_client import AsyncClient
from nanoserve_client.chaos.references import Reference
from nanoserve_client.chaos.streams import ChaosStream
from nanoserve_client.chaos.verdicts import Kind, Rules, Verdict, judge

_STREAM_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One request of the traffic, in seconds of this process's monotonic clock."""

    case: int
    began: float
    seconds: float
    num_tokens: int
    longest_pause_seconds: float
    verdict: Verdict


class Traffic:
    """Asks for references at random, judges what comes, and keeps a sample of each."""

    def __init__(
        self,
        client: AsyncClient,
        references: Sequence[Reference],
        rules: Rules,
        seed: int,
        leave_share: float = 0.0,
    ) -> None:
        """`leave_share` of the clients leave before their stream ends."""
        self.samples: list[Sample] = []
        self._client, self._references, self._rules = client, references, rules
        self._draw = random.Random(f"traffic/{seed}")
        self._leave_share = leave_share
        self._tasks: set[asyncio.Task[None]] = set()

    async def run_lanes(self, num_lanes: int, seconds: float) -> None:
        """Keeps so many requests under way for a while, then returns when all have ended."""
        end = time.monotonic() + seconds

        async def lane() -> None:
            while time.monotonic() < end:
                await self._ask()

        await asyncio.gather(*(lane() for _ in range(num_lanes)))

    async def run_arrivals(self, per_second: float, seconds: float) -> None:
        """Sends requests at random moments at this rate for a while, whatever becomes of them; waits for their ends."""
        at, end = time.monotonic(), time.monotonic() + seconds
        while (at := at + self._draw.expovariate(per_second)) < end:
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            task = asyncio.ensure_future(self._ask())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await asyncio.gather(*self._tasks)

    def problems(self, allowed: Sequence[Kind]) -> list[str]:
        """What came of streams that may not."""
        wrong = [sample for sample in self.samples if sample.verdict.kind not in allowed]
        return [f"case {s.case}: {s.verdict.kind} {s.verdict.reason}".rstrip() for s in wrong]

    def of_kind(self, kind: Kind) -> list[Sample]:
        """Samples of streams that came to this."""
        return [sample for sample in self.samples if sample.verdict.kind is kind]

    async def _ask(self) -> None:
        reference = self._draw.choice(self._references)
        leave_at = self._draw.randrange(1, max(2, reference.num_tokens)) if self._leaves() else None
        num_tokens, began = 0, time.monotonic()

        def note(count: int) -> None:
            nonlocal num_tokens
            num_tokens += count
            if leave_at is not None and num_tokens >= leave_at:
                stream.leave()

        stream = ChaosStream(self._client, reference.case, note)
        with suppress(TimeoutError):
            await stream.play(_STREAM_SECONDS)
        seen = stream.seen
        pause = max(seen.longest_pause_seconds, seen.first_seconds)
        verdict = judge(reference, seen, self._rules)
        self.samples.append(Sample(reference.case.number, began, seen.seconds, num_tokens, pause, verdict))

    def _leaves(self) -> bool:
        return self._draw.random() < self._leave_share
