"""What all trials share: longer than runs, each with checks and figures of its own."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from nanoserve_client.chaos.executors import ExecutorKind
from nanoserve_client.chaos.references import Reference
from nanoserve_client.chaos.runner import undisturbed
from nanoserve_client.chaos.stack import ServiceLog, Stack, StackFlags


@dataclass(frozen=True, slots=True)
class TrialPlan:
    """What a trial is played with."""

    executor: ExecutorKind
    seed: int
    seconds: float
    num_streams: int
    model: str | None = None
    executor_flags: Sequence[str] = ()

    def flags(self, executor: Sequence[str] = (), scheduler: Sequence[str] = ()) -> StackFlags:
        """What the services are started with; the user's flags last."""
        flags = (*self.executor.flags, *executor, *self.executor_flags)
        seconds = self.executor.start_seconds
        return StackFlags(model=self.model, executor=flags, scheduler=scheduler, restart_seconds=seconds)

    async def references(self, flags: StackFlags, log: ServiceLog) -> list[Reference]:
        """The references, from services of their own with these flags of the executor."""
        executor = (*flags.executor, *self.executor.reference_flags)
        return await undisturbed(
            replace(flags, executor=executor, scheduler=()), self.executor, self.seed, log
        )


@dataclass(slots=True)
class TrialResult:
    """What a trial came to."""

    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def require(self, holds: bool, problem: str) -> None:
        """Notes a problem unless something holds."""
        if not holds:
            self.problems.append(problem)


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Does work that has no end of its own beside the body, and ends it there; raises what it failed with."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def on_stack(
    flags: StackFlags, log: ServiceLog, play: Callable[[Stack], Awaitable[TrialResult]]
) -> TrialResult:
    """Plays on services of its own, which must be idle afterwards and end well."""
    stack = Stack(flags, log)
    try:
        await stack.start()
        result = await play(stack)
        if left := await stack.wait_idle():
            result.problems.append(f"left when the trial was over: {left}")
        result.problems += await stack.close()
    finally:
        if stack.is_open:
            await stack.destroy()
    return result
