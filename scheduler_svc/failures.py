"""What becomes of a session's loss: who is at fault ends, all others go on; and when a step counts as lost at all."""

import time
from dataclasses import dataclass

import structlog

from nanoserve.step_limits import StepClock, StepLimits
from scheduler_svc.core.recovery import Recovery
from scheduler_svc.core.scheduler import Scheduler
from scheduler_svc.core.step import Session, StepPlan
from scheduler_svc.engine_requests import Requests
from scheduler_svc.messages import Code, Problem
from scheduler_svc.wire import StepFailed

# Each loss of late doubles what a step may take, up to so many.
_MAX_DOUBLINGS = 6
_NO_ROOM = Problem(
    Code.RESOURCE_EXHAUSTED, "the executor came back with too small a KV cache for this request"
)
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SentPlan:
    """A plan on its way; times in seconds."""

    step_id: int
    num_tokens: int
    """Tokens it computes at most."""
    time: float
    schedule_seconds: float

    @classmethod
    def of(cls, plan: StepPlan, began: float, now: float) -> "SentPlan":
        """A plan that was begun to be made then, and is sent now."""
        num_tokens = len(plan.decode_rows) * plan.num_decode_steps
        num_tokens += sum(chunk.num_tokens for chunk in plan.prefills)
        return cls(plan.step_id, num_tokens, now, now - began)


class Failures:
    """Belongs to the engine, from its core's first session on."""

    def __init__(self, core: Scheduler, requests: Requests) -> None:
        self._core, self._requests = core, requests
        self.recovery = Recovery(core, time.monotonic())
        self._limits, self._clock = StepLimits(), StepClock()
        self._num_results = 0
        self._last_answer = 0.0

    def answered(self, sent: SentPlan, now: float, *, last: bool) -> None:
        """A result of the oldest plan has come."""
        self._num_results += 1
        if last:
            # It had the executor from when the plan before it was answered.
            self._limits.observe(sent.num_tokens, now - max(sent.time, self._last_answer))
            self._last_answer = now

    def tick(self, oldest: SentPlan | None, elapsed_seconds: float) -> str | None:
        """Says why the session is to be given up, where the oldest plan under way takes too long."""
        state = (oldest.step_id, self._num_results) if oldest is not None else None
        seconds = self._clock.tick(state, elapsed_seconds)
        if oldest is None:
            return None
        doublings = min(self.recovery.num_recent_losses(time.monotonic()), _MAX_DOUBLINGS)
        limit = self._limits.limit(oldest.num_tokens) * 2**doublings
        if seconds < limit:
            return None
        return f"step {oldest.step_id} of {oldest.num_tokens} tokens has not finished within {limit:.0f} s"

    def step_failed(self, failed: StepFailed) -> None:
        """The executor has told that a step failed; its session is over."""
        reason = f"{failed.field}: {failed.description}" if failed.field else failed.description
        _log.error("step failed", step_id=failed.step_id, code=failed.code, reason=reason, rows=failed.rows)
        at_fault = self._core.blame(failed.step_id, failed.rows)
        for sequence_id in at_fault:
            self._requests.blame(sequence_id, reason)
        if failed.code == "DATA_LOSS":
            self._core.reset_prefix_cache()  # what was found wrong must not be hit again
        if at_fault:
            self.recovery.left(time.monotonic())
        else:
            self._blame(self.recovery.lost(time.monotonic(), failed.step_id), reason)

    def session_lost(self, reason: str) -> None:
        """The session is over, with whatever plans are not answered."""
        self._blame(self.recovery.lost(time.monotonic()), f"it was alone in each lost plan: {reason}")

    def reset(self, session: Session) -> None:
        """Goes on with a new session; ValueError as Scheduler.reset."""
        for sequence_id in self.recovery.reset(session, time.monotonic()):
            self._requests.fail_sequence(sequence_id, _NO_ROOM)

    def _blame(self, sequence_id: int | None, reason: str) -> None:
        if sequence_id is not None:
            self._requests.blame(sequence_id, reason)
