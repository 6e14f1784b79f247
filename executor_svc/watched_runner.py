"""A runner that notes in shared memory which steps are under way, for the parent that ends an executor that hangs."""

import math
import threading
import time
from collections import deque

from executor_svc.plan import Step, SubStepOutput
from executor_svc.progress import Page
from executor_svc.runner import PendingStep, StepRunner
from nanoserve.step_limits import StepLimits


class WatchedRunner:
    """A runner whose steps are noted in a page. A StepRunner; see there."""

    def __init__(self, runner: StepRunner, page: Page) -> None:
        self.limits, self.device, self.dtype, self.fatal = (
            runner.limits,
            runner.device,
            runner.dtype,
            runner.fatal,
        )
        self._runner, self._page = runner, page
        self._step_limits = StepLimits()
        self._lock = threading.Lock()
        # Tokens of the steps under way and when they were launched, oldest first.
        self._under_way: deque[tuple[int, float]] = deque()
        self._num_launched = self._num_finished = 0
        self._last_end = 0.0

    def reset(self) -> None:
        """Clears all rows."""
        self._runner.reset()

    def launch(self, step: Step) -> PendingStep:
        """Queues a step; it is under way from before that until its last result was waited for."""
        plan = step.plan
        num_tokens = len(plan.decode_rows) * plan.num_decode_steps
        num_tokens += sum(prefill.num_tokens for prefill in plan.prefills)
        with self._lock:
            self._under_way.append((num_tokens, time.monotonic()))
            self._num_launched += 1
            self._page.launch(self._num_launched, self._limit())
        try:
            return WatchedStep(self, self._runner.launch(step), plan.num_decode_steps)
        except BaseException:
            self.finish(newest=True)
            raise

    def close(self) -> None:
        """Frees the device."""
        self._runner.close()

    def finish(self, newest: bool = False) -> None:
        """The oldest step under way is over; or the newest, which came to nothing and tells of no step's time."""
        now = time.monotonic()
        with self._lock:
            if newest:
                self._under_way.pop()
            else:
                num_tokens, launched = self._under_way.popleft()
                self._step_limits.observe(num_tokens, now - max(launched, self._last_end))
                self._last_end = now
            self._num_finished += 1
            self._page.finish(self._num_finished, self._limit())

    def _limit(self) -> float:
        """Of the steps under way; without any none, as it may be read beside counts of a moment before."""
        return max(
            (self._step_limits.limit(num_tokens) for num_tokens, _ in self._under_way), default=math.inf
        )


class WatchedStep:
    """A step whose end is noted. A PendingStep; see there."""

    def __init__(self, runner: WatchedRunner, step: PendingStep, num_sub_steps: int) -> None:
        self._runner, self._step, self._last = runner, step, num_sub_steps - 1

    def wait(self, sub_step: int) -> SubStepOutput:
        """Blocks until the sub-step is done."""
        try:
            output = self._step.wait(sub_step)
        except BaseException:
            self._runner.finish()
            raise
        if sub_step == self._last:
            self._runner.finish()
        return output
