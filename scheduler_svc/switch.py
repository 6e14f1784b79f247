"""A planned change of executors: the other's session is opened first, then plans are held until none is unanswered."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from scheduler_svc import messages as msg
from scheduler_svc.core.scheduler import Scheduler
from scheduler_svc.errors import internal_problem
from scheduler_svc.executor_access import ExecutorAccess
from scheduler_svc.link import ExecutorLink
from scheduler_svc.messages import Code, Problem
from scheduler_svc.prepared_session import PreparedSession, SwitchRefused
from scheduler_svc.wire import decode_session

_UNDER_WAY = Problem(Code.FAILED_PRECONDITION, "another switch is under way", "executor")


@dataclass(frozen=True, slots=True)
class SwitchPrepared:
    """A session with the other executor is open, or cannot be; the engine is told by this."""

    outcome: PreparedSession | Problem


class Switch:
    """Belongs to the engine's loop. One change at a time."""

    def __init__(
        self,
        link: ExecutorLink,
        publish: Callable[[msg.Event], None],
        post: Callable[[SwitchPrepared], None],
    ) -> None:
        """`post` gets SwitchPrepared, on the loop."""
        self._link, self._publish, self._post = link, publish, post
        self._key: int | None = None
        """Of the command to answer; None while there is no change."""
        self._task: asyncio.Task[None] | None = None
        self._prepared: PreparedSession | None = None
        self._is_handed_over = False

    @property
    def prepared(self) -> PreparedSession | None:
        """What to hand over to as soon as no plan is unanswered; until then none is sent."""
        return self._prepared

    def begin(self, command: msg.SwitchExecutor) -> None:
        """Begins to open a session with another executor; the present one works meanwhile."""
        if self._key is not None:
            self._publish(msg.ExecutorSwitched(command.key, problem=_UNDER_WAY))
            return
        self._key = command.key
        self._task = asyncio.ensure_future(self._prepare(command.executor))

    def take(self, outcome: PreparedSession | Problem, core: Scheduler | None) -> None:
        """Whether the executor is to be changed, now that its successor is ready, or is not."""
        problem = outcome if isinstance(outcome, Problem) else _unfitness(outcome, core)
        if problem is not None:
            if isinstance(outcome, PreparedSession):
                outcome.cancel()
            self._answer(problem=problem)
        elif isinstance(outcome, PreparedSession):
            self._prepared = outcome

    def hand_over(self) -> ExecutorAccess:
        """Makes the change; returns how the other executor is reached. SessionOpened follows."""
        assert self._prepared is not None
        prepared, self._prepared, self._is_handed_over = self._prepared, None, True
        self._link.hand_over(prepared)
        return prepared.access

    def opened(self, epoch: int) -> None:
        """A session is open: that of the change, if there is one and it has been handed over to."""
        if self._is_handed_over:
            self._is_handed_over = False
            self._answer(epoch=epoch)

    def close(self) -> None:
        """Gives up what is under way."""
        if self._task is not None:
            self._task.cancel()
        if self._prepared is not None:
            self._prepared.cancel()

    def _answer(self, epoch: int = 0, problem: Problem | None = None) -> None:
        if self._key is not None:
            key, self._key = self._key, None
            self._publish(msg.ExecutorSwitched(key, epoch, problem))

    async def _prepare(self, address: str) -> None:
        outcome: PreparedSession | Problem
        try:
            outcome = await self._link.prepare(address)
        except SwitchRefused as error:
            outcome = Problem(Code.FAILED_PRECONDITION, str(error), "executor")
        except Exception:  # a bug: the caller must be told, and a later change be possible
            outcome = internal_problem("a switch failed")
        self._post(SwitchPrepared(outcome))


def _unfitness(prepared: PreparedSession, core: Scheduler | None) -> Problem | None:
    """Why the running sequences cannot go on there."""
    try:
        num_lost = core.num_lost_by(decode_session(prepared.opened.description)) if core is not None else 0
    except ValueError as error:
        return Problem(Code.FAILED_PRECONDITION, str(error), "executor")
    if not num_lost:
        return None
    rule = f"has too small a KV cache for {num_lost} of the running sequences"
    return Problem(Code.FAILED_PRECONDITION, rule, "executor")
