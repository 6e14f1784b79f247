"""What the engine notes of its steps while a profile is recorded, and the spans that this and the executor's make.

All but `joined` belongs to the engine's thread. Times are seconds of the monotonic clock, as everywhere in the engine.
"""

import threading
import time

from nanoserve.profiles import BOUNDARY, EXECUTOR_HOST, MAX_SECONDS, SCHEDULER, Profile, Span
from scheduler_svc.core.step import StepResult

# What may be noted while the executor, busy or away, has not begun.
_MAX_PLANS = 1000


class StepSpans:
    """Takes in the steps of one session from now on, as many plans and seconds as `confirm` says, or some hundreds."""

    def __init__(self) -> None:
        self._max_plans, self._deadline = _MAX_PLANS, time.monotonic() + MAX_SECONDS
        self._epoch: int | None = None
        self._is_over = False
        self._steps: set[int] = set()
        self._spans: list[Span] = []
        self._thread_id = threading.get_native_id()
        self._scheduled = self._published = 0.0

    def confirm(self, num_steps: int) -> None:
        """The executor has begun: it notes so many forward passes, of plans noted here already or of those to come."""
        self._max_plans = len(self._steps) + num_steps
        self._deadline = time.monotonic() + MAX_SECONDS

    def is_over(self) -> bool:
        """Whether nothing more is taken in but the results of the steps that were."""
        return self._is_over or len(self._steps) >= self._max_plans or time.monotonic() > self._deadline

    def planned(self, epoch: int, step_id: int, began: float) -> None:
        """The core has just made a plan, from `began` on."""
        if self._epoch is None:
            self._epoch = epoch
        # In another session step ids begin anew.
        self._is_over = self.is_over() or epoch != self._epoch
        if not self._is_over:
            self._steps.add(step_id)
            self._scheduled = time.monotonic()
            self._add("schedule", step_id, began, self._scheduled)

    def sent(self, step_id: int, now: float) -> None:
        """The plan made last is on its way."""
        if not self._is_over:
            self._add("send", step_id, self._scheduled, now)

    def updated(self, epoch: int, result: StepResult, resumed: float, updated: float) -> None:
        """The core has taken a result in, from `resumed` to `updated`; its tokens are about to be published."""
        self._published = time.monotonic()
        if self._knows(epoch, result):
            self._add("update", result.step_id, resumed, updated, result.sub_step)

    def published(self, epoch: int, result: StepResult, began: float) -> None:
        """All that a result brought, which came at `began`, is done: plans sent, tokens published."""
        if self._knows(epoch, result):
            now, sub_step = time.monotonic(), result.sub_step
            self._add("publish", result.step_id, self._published, now, sub_step)
            self._add("result", result.step_id, began, now, sub_step)

    def joined(self, profile: Profile) -> Profile:
        """The executor's profile, with the scheduler's spans of the same steps, and the boundary's between them."""
        kept = {span.step_id for span in profile.spans}
        ours = [span for span in self._spans if span.step_id in kept]
        spans = (*ours, *_boundary(ours, profile.spans), *profile.spans)
        in_order = sorted(spans, key=lambda span: (span.begin_ns, -span.end_ns))
        return Profile(profile.path, profile.num_steps, tuple(in_order), profile.trace)

    def _knows(self, epoch: int, result: StepResult) -> bool:
        return epoch == self._epoch and result.step_id in self._steps

    def _add(self, name: str, step_id: int, began: float, ended: float, sub_step: int = 0) -> None:
        begin_ns, end_ns = round(began * 1e9), round(ended * 1e9)
        self._spans.append(Span(SCHEDULER, name, step_id, begin_ns, end_ns, sub_step, self._thread_id))


def _boundary(ours: list[Span], theirs: tuple[Span, ...]) -> list[Span]:
    """Plans from their sending to their launch, results from their being ready to their being taken in.

    Without those whose ends are in the wrong order, as on machines whose clocks differ.
    """
    beginnings = {(span.name, span.step_id, span.sub_step): span.begin_ns for span in ours}
    spans = []
    for span in theirs:
        key = (span.step_id, span.sub_step)
        if span.lane != EXECUTOR_HOST:
            continue
        if span.name == "launch" and (sent := beginnings.get(("send", *key))) is not None:
            spans.append(Span(BOUNDARY, "plan", key[0], sent, span.begin_ns))
        elif span.name == "encode" and (taken := beginnings.get(("result", *key))) is not None:
            spans.append(Span(BOUNDARY, "result", key[0], span.begin_ns, taken, key[1]))
    return [span for span in spans if span.begin_ns <= span.end_ns]
