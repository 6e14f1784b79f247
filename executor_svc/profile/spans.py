"""What a session notes of its steps while a profile is recorded, and the spans that this makes."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from nanoserve.profiles import DEVICE, EXECUTOR_HOST, Span


@dataclass(frozen=True, slots=True)
class _SubStep:
    """A forward pass whose result is known; times in nanoseconds, the last two as the device measured them."""

    step_id: int
    sub_step: int
    ready_ns: int
    device_ns: int
    idle_ns: int


class StepSpans:
    """Takes in the steps of one session, up to `max_steps` forward passes.

    One thread at a time calls `launched`, one `answered`, while others may wait for `full`.
    """

    def __init__(self, max_steps: int, after_step_id: int = 0) -> None:
        """Steps with ids up to `after_step_id` are left out."""
        self.full = threading.Event()
        """Set once nothing more is taken in but the results of the steps that were."""
        self.num_steps = 0
        """Forward passes launched."""
        self._max_steps, self._after_step_id = max_steps, after_step_id
        self._epoch: int | None = None
        self._launched: set[int] = set()
        self._host: list[Span] = []
        self._results: list[_SubStep] = []

    def launched(
        self, epoch: int, step_id: int, num_sub_steps: int, begin_ns: int, launch_ns: int, end_ns: int
    ) -> None:
        """A step was decoded from `begin_ns`, launched from `launch_ns` to `end_ns`, by the calling thread."""
        if self._epoch is None:
            self._epoch = epoch
        if epoch != self._epoch:
            self.full.set()  # step ids begin anew
        if self.full.is_set() or step_id <= self._after_step_id:
            return
        thread_id = threading.get_native_id()
        self._launched.add(step_id)
        self._host.append(Span(EXECUTOR_HOST, "decode", step_id, begin_ns, launch_ns, thread_id=thread_id))
        self._host.append(Span(EXECUTOR_HOST, "launch", step_id, launch_ns, end_ns, thread_id=thread_id))
        self.num_steps += num_sub_steps
        if self.num_steps >= self._max_steps:
            self.full.set()

    def answered(
        self, epoch: int, step_id: int, sub_step: int, ready_ns: int, device_ns: int, idle_ns: int
    ) -> None:
        """The calling thread has known a result since `ready_ns`, and has just encoded it."""
        if epoch != self._epoch or step_id not in self._launched:
            return
        now_ns, thread_id = time.monotonic_ns(), threading.get_native_id()
        self._host.append(Span(EXECUTOR_HOST, "encode", step_id, ready_ns, now_ns, sub_step, thread_id))
        self._results.append(_SubStep(step_id, sub_step, ready_ns, device_ns, idle_ns))

    def spans(self) -> tuple[Span, ...]:
        """All spans; to be called when nothing is taken in any more."""
        return (*self._host, *self._device())

    def _device(self) -> Iterator[Span]:
        """The device's spans: its own clock says how long each step took and waited, the host when it was over.

        A result is known a little after its step's end, at best by the time it takes to tell: so the steps, laid end
        to end, are moved as far back as the least of these delays.
        """
        results = self._results
        ends = list(accumulate(result.idle_ns + result.device_ns for result in results))
        if not results:
            return
        begin_ns = min(result.ready_ns - end for result, end in zip(results, ends, strict=True))
        for result, end in zip(results, ends, strict=True):
            end_ns = begin_ns + end
            yield Span(DEVICE, "step", result.step_id, end_ns - result.device_ns, end_ns, result.sub_step)


class SpanTap:
    """Where sessions look whether a profile is being recorded."""

    def __init__(self) -> None:
        self.spans: StepSpans | None = None
        """None: nothing is recorded."""
