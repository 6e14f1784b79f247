"""Does to a stack what a fault says, and takes it back where it ends by itself."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from nanoserve.arrays import pack_int32
from nanoserve_client.chaos import rogue_executor, rogue_scheduler
from nanoserve_client.chaos.managed import ManagedProcess
from nanoserve_client.chaos.process_table import descendants, is_running, largest
from nanoserve_client.chaos.profile import WAYS
from nanoserve_client.chaos.rogue_executor import Poison
from nanoserve_client.chaos.schedule import Fault
from nanoserve_client.chaos.stack import Stack
from nanoserve_client.chaos.streams import ChaosStream, Seen
from nanoserve_client.errors import Internal

# A watchdog takes 10 s to be sure of a step and 60 s of a process, a heartbeat 10 pings.
_FREEZE_SECONDS = 90.0
_TAMPER_SECONDS = 3.0
_FENCE_SECONDS = 20.0
_POLL_SECONDS = 0.02
# Of a prompt that no other request has.
_POISON_TOKENS, _LARGEST_TOKEN = 12, 700
# Faults that no session with the executor ends by.
_HARMLESS = ("leave", "burst", "intrude", "delay")


@dataclass(frozen=True, slots=True)
class Injection:
    """What came of a fault."""

    fault: Fault
    was_injected: bool = True
    problem: str = ""


class Injector:
    """Injects the faults of one run."""

    def __init__(
        self,
        stack: Stack,
        schedule: Sequence[Fault],
        streams: Sequence[ChaosStream],
        burst: Callable[[int, random.Random], None],
        ask: Callable[[list[int]], Awaitable[Seen]],
    ) -> None:
        """`streams` are those that may be left; `burst` sends so many more requests, `ask` one with this prompt."""
        self._stack, self._streams, self._burst, self._ask = stack, streams, burst, ask
        self._num_disruptive = sum(fault.kind not in _HARMLESS for fault in schedule)

    async def inject(self, fault: Fault) -> Injection:
        """Returns when the fault has ended."""
        draw = random.Random(fault.seed)
        if not fault.way and fault.kind in WAYS:
            fault = replace(fault, way=draw.choice(self._possible_ways(fault.kind)))
        self._stack.log("chaos", str(fault))
        try:
            problem = await self._inject(fault, draw)
        except rogue_scheduler.ExecutorLeft as left:
            if self._is_alone(fault):
                return Injection(fault, problem=f"{fault.kind} ({fault.way}): the executor left: {left}")
            return Injection(fault, was_injected=False)
        except (ProcessLookupError, TimeoutError):
            return Injection(fault, was_injected=False)  # whom it was to hit is away, or has nothing to do
        return Injection(fault, problem=problem)

    async def _inject(self, fault: Fault, draw: random.Random) -> str:
        match fault.kind:
            case "kill" | "pause" | "freeze" | "terminate":
                return await self._signal(fault, draw)
            case "cut" | "refuse" | "stall" | "delay":
                await self._disturb_link(fault, draw)
            case "leave":
                running = [stream for stream in self._streams if stream.seen.completion is None]
                for stream in draw.sample(running, min(fault.count, len(running))):
                    stream.leave()
            case "burst":
                self._burst(fault.count, draw)
            case "intrude":
                return await rogue_scheduler.intrude(self._stack.executor_address, fault.way)
            case "take_over":
                return await self._take_over(fault, draw)
            case "tamper":
                assert self._stack.relay is not None  # profiles that tamper have one
                await asyncio.wait_for(self._stack.relay.tamper(fault.way), _TAMPER_SECONDS)
            case "poison":
                return await self._poison(fault.way, draw)
        return ""

    def _possible_ways(self, kind: str) -> list[str]:
        """Ways to draw from. Where the session may be lost at that moment, another one may well be opened."""
        without = {rogue_executor.LIE} | ({rogue_scheduler.NO_TAKE_OVER} if self._num_disruptive else set())
        return [way for way in WAYS[kind] if way not in without]

    def _is_alone(self, fault: Fault) -> bool:
        """Whether no other fault of the run ends sessions, so that what comes of this one is its own."""
        return self._num_disruptive == (fault.kind not in _HARMLESS)

    async def _signal(self, fault: Fault, draw: random.Random) -> str:
        process = self._stack.executor if fault.target == "executor" else self._stack.scheduler
        pid = self._pid(fault, process, draw)
        is_service = fault.target != "api_worker"
        match fault.kind:
            case "kill" if is_service:
                process.kill(pid)
            case "kill":
                if not await self._stack.is_serving(process):
                    process.excuse_end()  # a scheduler that starts ends where a worker cannot
                os.kill(pid, signal.SIGKILL)
            case "terminate":
                process.excuse_end()
                os.kill(process.pid, signal.SIGTERM)
            case "pause":
                os.kill(pid, signal.SIGSTOP)
                try:
                    await asyncio.sleep(fault.seconds)
                finally:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)
            case "freeze":
                return await self._freeze(fault, process, pid)
        return ""

    def _pid(self, fault: Fault, process: ManagedProcess, draw: random.Random) -> int:
        """Whom to hit: a service's first process, the one of an executor that holds the device, or an API worker."""
        if fault.target == "api_worker":
            workers = [pid for pid in descendants(process.pid) if _is_api_worker(pid)]
            if not workers:
                raise ProcessLookupError
            return draw.choice(workers)
        if fault.target == "scheduler":
            return process.pid
        holder = largest(process.family)
        return draw.choice([process.pid, holder]) if fault.kind == "kill" else holder

    async def _freeze(self, fault: Fault, process: ManagedProcess, pid: int) -> str:
        """Stops a process for good: somebody must notice and end it."""
        if fault.target == "executor":
            process.excuse_end()
        os.kill(pid, signal.SIGSTOP)
        end = time.monotonic() + _FREEZE_SECONDS
        while is_running(pid):
            await asyncio.sleep(_POLL_SECONDS)
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                return f"a frozen {fault.target} was not ended within {_FREEZE_SECONDS:g} s"
        return ""

    async def _poison(self, way: str, draw: random.Random) -> str:
        """Sends a request that no executor survives: it alone must end, as the server's own fault."""
        relay, executor = self._stack.relay, self._stack.executor
        assert relay is not None  # profiles that poison have one

        def kill() -> None:
            executor.kill(largest(executor.family))

        prompt = draw.choices(range(1, _LARGEST_TOKEN), k=_POISON_TOKENS)
        poison = Poison(pack_int32(prompt), kill if way == "kill" else None)
        relay.poisons.append(poison)
        try:
            seen = await self._ask(prompt)
        finally:
            relay.poisons.remove(poison)
        if isinstance(seen.error, Internal) and not seen.boundaries:
            return ""
        return f"poison ({way}): {seen.error or seen.completion or 'no end'} instead of INTERNAL"

    async def _disturb_link(self, fault: Fault, draw: random.Random) -> None:
        link = self._stack.executor_link if fault.target == "executor_link" else self._stack.client_link
        match fault.kind:
            case "cut":
                link.cut()
            case "refuse":
                await link.refuse(fault.seconds)
            case "stall":
                await link.stall(fault.seconds)
            case "delay":
                await link.delay(draw.uniform(0.002, 0.1), fault.seconds)

    async def _take_over(self, fault: Fault, draw: random.Random) -> str:
        """Takes the executor over, and sees to it that the scheduler ends of itself, with status 0."""
        scheduler, is_alone = self._stack.scheduler, self._is_alone(fault)
        num_ends = len(scheduler.statuses)
        rogue = rogue_scheduler.TakeOver(self._stack.executor_address, fault.way, draw)
        scheduler.tolerates_ends = True
        try:
            if problem := await rogue.run():
                return problem
            status = await asyncio.wait_for(scheduler.wait_end(num_ends), _FENCE_SECONDS)
        except TimeoutError:
            return "a scheduler that was fenced goes on" if is_alone else ""
        finally:
            scheduler.tolerates_ends = False
            if rogue.may_have_fenced and not is_alone and len(scheduler.statuses) == num_ends:
                scheduler.excuse_end()  # it may have been fenced, and end later
        return f"a fenced scheduler ended with status {status}" if is_alone and status != 0 else ""


def _is_api_worker(pid: int) -> bool:
    with suppress(OSError):
        return b"scheduler_svc.api_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False
