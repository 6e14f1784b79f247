"""Carries a scheduler over lost sessions, and ends the sequence that keeps losing them; see isolation.py.

Stands between the shell and the core wherever plans are made, and adds nothing while nobody is suspected.
"""

from scheduler_svc.core.isolation import NOBODY, Isolation
from scheduler_svc.core.scheduler import Scheduler
from scheduler_svc.core.step import Session, StepOutputs, StepPlan


class Recovery:
    """Belongs to one scheduler. `now` as there."""

    def __init__(self, core: Scheduler, now: float) -> None:
        """The core's first session has just been opened."""
        self._core = core
        self._isolation = Isolation()
        self._isolation.opened(now, ())
        self._tried: set[int] = set()
        """Those on trial that have been in a plan."""
        self._is_trying = False

    def num_recent_losses(self, now: float) -> int:
        """Sessions lost within the last minute served, with plans unanswered."""
        return self._isolation.num_recent_losses(now)

    def lost(self, now: float, failed_step: int | None = None) -> int | None:
        """The session is lost; returns the sequence at fault, which then has to end, where it is known.

        `failed_step` is the one that the executor has told to have failed, where it did: no other is suspected then.
        """
        self._isolation.retain(self._core.live)
        sequence_ids, num_steps = self._core.unanswered(failed_step)
        self._is_trying = False
        return self._isolation.lost(now, sequence_ids, num_steps)

    def left(self, now: float) -> None:
        """The session is over, and nobody of those left in it is to blame."""
        self._is_trying = False
        self._isolation.lost(now, (), 0)

    def reset(self, session: Session, now: float) -> list[int]:
        """A new session is open; see Scheduler.reset."""
        lost = self._core.reset(session, now)
        self._isolation.retain(self._core.live)
        self._isolation.opened(now, self._core.live)
        suspects = self._isolation.suspects
        if suspects:
            self._core.hold(suspects.__contains__)
        return lost

    def schedule(self, now: float, num_decode_steps: int = 1, num_answered: int = 0) -> StepPlan | None:
        """Plans the next step; see Scheduler.schedule. Of a trial one plan is under way, and none of others."""
        if not self._isolation.is_active and not self._is_trying:
            return self._core.schedule(now, num_decode_steps, num_answered)
        if num_answered:
            return None  # nothing is hurried now
        self._isolation.retain(self._core.live)
        if self._is_trying:
            return self._go_on_trying(now)
        plan = None
        if not self._isolation.may_begin_trial:
            plan = self._core.schedule(now)
        if plan is None and not self._core.num_in_flight and self._isolation.is_active:
            self._begin_trial()
            plan = self._go_on_trying(now)
        return plan

    def updated(self, outputs: StepOutputs) -> None:
        """A result has been taken in."""
        if not self._isolation.is_watching:
            return
        self._isolation.advanced(outputs.sequence_ids.tolist())
        self._isolation.retain(self._core.live)

    def _go_on_trying(self, now: float) -> StepPlan | None:
        """Plans a step of the trial, once its last one is answered; ends trials that are over."""
        while self._is_trying and not self._core.num_in_flight:
            if self._isolation.is_trial_over(self._tried):
                self._end_trial()
                continue
            plan = self._core.schedule(now)
            if plan is not None:
                self._tried |= self._core.unanswered()[0]
                return plan
            if any(self._core.live[sequence_id].lacks_mask for sequence_id in self._isolation.trial):
                return None
            self._isolation.pardon()
        return None if self._is_trying else self._core.schedule(now)

    def _begin_trial(self) -> None:
        group = self._isolation.begin_trial()
        self._tried, self._is_trying = set(), True
        self._core.hold(lambda sequence_id: sequence_id not in group)

    def _end_trial(self) -> None:
        self._isolation.end_trial()
        if self._isolation.suspects != NOBODY:
            self._begin_trial()
        else:
            self._is_trying = False
            self._core.hold(None)
