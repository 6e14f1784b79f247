"""One run: several streams, a schedule of faults among them, and what all of it came to."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from nanoserve_client.async_client import AsyncClient
from nanoserve_client.chaos.cases import Case
from nanoserve_client.chaos.faults import Injection, Injector
from nanoserve_client.chaos.profile import Profile
from nanoserve_client.chaos.references import Reference
from nanoserve_client.chaos.schedule import Fault, draw_of_run, make_schedule
from nanoserve_client.chaos.stack import Stack
from nanoserve_client.chaos.streams import ChaosStream, Seen
from nanoserve_client.chaos.verdicts import Kind, Rules, Verdict, judge
from nanoserve_client.errors import ServerStartError
from nanoserve_client.options import GenerateOptions

_POLL_SECONDS = 0.01
# A fault comes at the latest when nothing has come for so long: what went before it holds up all streams.
_STANDSTILL_SECONDS = 3.0
# A stream may have to wait for so many before it is taken to hang.
_MOST_RESTARTS = 3
# Of the streams, how many begin when the run is under way; and by which share of its tokens they have begun.
_LATE_SHARE, _LAST_START = 0.25, 0.5


@dataclass(slots=True)
class RunRecord:
    """What a run came to."""

    number: int
    injections: list[Injection] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    """Of each stream its longest, in seconds."""
    problems: list[str] = field(default_factory=list)
    num_retries: int = 0
    seconds: float = 0.0

    @property
    def kinds(self) -> Counter[Kind]:
        """How many streams came to what."""
        return Counter(verdict.kind for verdict in self.verdicts)


class Run:
    """Plays one run on a stack."""

    def __init__(
        self,
        stack: Stack,
        profile: Profile,
        references: Sequence[Reference],
        rules: Rules,
        seed: int,
        number: int,
    ) -> None:
        draw = draw_of_run(profile, seed, number)
        self.schedule = make_schedule(profile, draw)
        self._stack, self._profile, self._rules = stack, profile, rules
        self._all_references = references
        self._references = draw.choices(references, k=draw.randint(*profile.streams))
        self._starts = [
            draw.uniform(0, _LAST_START) if draw.random() < _LATE_SHARE and i else 0.0
            for i in range(len(self._references))
        ]
        self._lane_of = [draw.randrange(2) for _ in self._references]
        self._num_expected = sum(reference.num_tokens for reference in self._references)
        self._num_tokens = 0
        self._last_token_at = time.monotonic()
        self._streams: list[ChaosStream] = []
        self._plays: list[asyncio.Task[None]] = []
        self._burst: list[tuple[Reference, ChaosStream]] = []
        self.record = RunRecord(number)

    async def play(self) -> RunRecord:
        """Returns when all streams have ended, all faults are over and the services are idle again."""
        began = self._last_token_at = time.monotonic()
        self._stack.log("chaos", f"run {self.record.number}")
        async with self._stack.client() as one, self._stack.client() as other:
            clients = (one, other)
            self._streams = [
                ChaosStream(clients[lane], reference.case, self._note_tokens)
                for lane, reference in zip(self._lane_of, self._references, strict=True)
            ]
            self._plays = [
                asyncio.ensure_future(self._play(stream, after))
                for stream, after in zip(self._streams, self._starts, strict=True)
            ]
            injector = Injector(
                self._stack,
                self.schedule,
                self._streams,
                lambda count, draw: self._send_burst(one, count, draw),
                lambda prompt: self._ask(other, prompt),
            )
            injections = [asyncio.ensure_future(self._inject(injector, fault)) for fault in self.schedule]
            self.record.injections = await asyncio.gather(*injections)
            while waiting := [play for play in self._plays if not play.done()]:
                await asyncio.wait(waiting)
        self._judge()
        await self._settle()
        self.record.seconds = time.monotonic() - began
        return self.record

    def _note_tokens(self, num_tokens: int) -> None:
        self._num_tokens += num_tokens
        self._last_token_at = time.monotonic()

    async def _reached(self, share: float) -> None:
        """Returns when this share of the tokens has come, or no more come."""
        while self._num_tokens < share * self._num_expected:
            if time.monotonic() - self._last_token_at > _STANDSTILL_SECONDS:
                return
            if all(play.done() for play in self._plays):
                return
            await asyncio.sleep(_POLL_SECONDS)

    async def _play(self, stream: ChaosStream, after: float) -> None:
        if after:
            await self._reached(after)
        with suppress(TimeoutError):
            await stream.play(self._profile.run_seconds + _MOST_RESTARTS * self._stack.patience_seconds)

    async def _inject(self, injector: Injector, fault: Fault) -> Injection:
        await self._reached(fault.after)
        if all(play.done() for play in self._plays):
            return Injection(fault, was_injected=False)
        return await injector.inject(fault)

    def _send_burst(self, client: AsyncClient, count: int, draw: random.Random) -> None:
        for reference in draw.choices(self._all_references, k=count):
            stream = ChaosStream(client, reference.case, lambda num_tokens: None)
            self._burst.append((reference, stream))
            self._plays.append(asyncio.ensure_future(self._play(stream, 0.0)))

    async def _ask(self, client: AsyncClient, prompt: list[int]) -> Seen:
        """Sends a request of its own, which no other is compared with."""
        options = GenerateOptions(seed=self.record.number, max_tokens=4, ignore_eos=True)
        stream = ChaosStream(client, Case(0, "poison", prompt, options), lambda num_tokens: None)
        await self._play(stream, 0.0)
        return stream.seen

    def _judge(self) -> None:
        record = self.record
        pairs = [*zip(self._references, self._streams, strict=True), *self._burst]
        for reference, stream in pairs:
            seen = stream.seen
            verdict = judge(reference, seen, self._rules)
            record.verdicts.append(verdict)
            record.num_retries += seen.num_retries
            record.pauses.append(max(seen.longest_pause_seconds, seen.first_seconds))
            if verdict.kind is Kind.WRONG:
                case = reference.case
                record.problems.append(f"case {case.number} ({case.kind}): {verdict.reason}")
        record.problems += [injection.problem for injection in record.injections if injection.problem]
        num_blames = sum(
            injection.was_injected and injection.fault.way == "blame" for injection in record.injections
        )
        if record.kinds[Kind.BLAMED] > num_blames:
            reasons = [verdict.reason for verdict in record.verdicts if verdict.kind is Kind.BLAMED]
            record.problems.append(f"INTERNAL where nothing was to blame: {reasons[0]}")
        if record.kinds[Kind.REFUSED] and not any(fault.kind == "burst" for fault in self.schedule):
            record.problems.append("requests were refused without a burst")

    async def _settle(self) -> None:
        """Waits until the services serve and hold nothing."""
        seconds = self._stack.patience_seconds
        try:
            await self._stack.wait_serving()
        except (TimeoutError, ServerStartError):
            self.record.problems.append(f"the services do not serve {seconds:g} s after the run")
        else:
            if left := await self._stack.wait_idle():
                self.record.problems.append(f"left {seconds:g} s after the run: {left}")
        self.record.problems += self._stack.take_problems()
        for process in (self._stack.executor, self._stack.scheduler):
            process.forget_excuses()
