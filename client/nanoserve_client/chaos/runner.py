"""Many runs of one profile: references first, then stacks that each see a share of the runs."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from nanoserve_client.chaos.cases import make_cases
from nanoserve_client.chaos.executors import ExecutorKind
from nanoserve_client.chaos.profile import Profile
from nanoserve_client.chaos.references import Reference, ask_alone
from nanoserve_client.chaos.runs import Run, RunRecord
from nanoserve_client.chaos.stack import ServiceLog, Stack, StackFlags


@dataclass(frozen=True, slots=True)
class Plan:
    """What to play."""

    profile: Profile
    executor: ExecutorKind
    seed: int
    runs: range
    model: str | None = None
    executor_flags: Sequence[str] = ()
    jobs: int = 1
    """Stacks at the same time."""

    def stack_flags(self, *, has_relay: bool = False, is_reference: bool = False) -> StackFlags:
        """What a stack is started with; `is_reference` for the one that is not disturbed."""
        more = self.executor.reference_flags if is_reference else ()
        return StackFlags(
            model=self.model,
            executor=(*self.executor.flags, *self.profile.executor_flags, *self.executor_flags, *more),
            scheduler=self.profile.scheduler_flags,
            api_workers=self.profile.api_workers,
            has_relay=has_relay,
            restart_seconds=self.executor.start_seconds,
        )


@dataclass(slots=True)
class Outcome:
    """What the runs came to."""

    records: list[RunRecord] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What was wrong outside of runs: at the ends of stacks."""
    num_stacks: int = 0


async def undisturbed(
    flags: StackFlags, executor: ExecutorKind, seed: int, log: ServiceLog
) -> list[Reference]:
    """The references of an executor's cases, from a stack of their own."""
    stack = Stack(flags, log)
    try:
        await stack.start()
        async with stack.client() as client:
            cases = make_cases(seed, executor.num_cases, executor.max_tokens)
            return await ask_alone(client, [case for case in cases if case.kind not in executor.without])
    finally:
        await stack.destroy()


async def play_runs(plan: Plan, log: ServiceLog, tell: Callable[[RunRecord], None]) -> Outcome:
    """Plays all runs; `tell` gets each as it ends."""
    references = await undisturbed(plan.stack_flags(is_reference=True), plan.executor, plan.seed, log)
    outcome, numbers = Outcome(), iter(plan.runs)
    jobs = [
        asyncio.ensure_future(_play_job(plan, references, numbers, outcome, log, tell))
        for _ in range(plan.jobs)
    ]
    try:
        await asyncio.gather(*jobs)
    finally:
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
    outcome.records.sort(key=lambda record: record.number)
    return outcome


async def _play_job(
    plan: Plan,
    references: Sequence[Reference],
    numbers: Iterator[int],
    outcome: Outcome,
    log: ServiceLog,
    tell: Callable[[RunRecord], None],
) -> None:
    """Plays runs until there is none left, on one stack after the other."""
    number = next(numbers, None)
    while number is not None:
        stack = Stack(plan.stack_flags(has_relay=plan.profile.needs_relay), log)
        outcome.num_stacks += 1
        try:
            await stack.start()
            for _ in range(plan.profile.runs_per_stack):
                run = Run(stack, plan.profile, references, plan.executor.rules, plan.seed, number)
                record = await run.play()
                outcome.records.append(record)
                tell(record)
                number = next(numbers, None)
                if number is None or record.problems:  # what is wrong with these processes must not spread
                    break
            if not record.problems:
                outcome.problems += await stack.close()
        finally:
            if stack.is_open:
                await stack.destroy()
