"""The virtual executor behind the session: a StepRunner whose device is a clock."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from executor_svc.plan import ErrorCode, Step, StepFailure, SubStepOutput
from executor_svc.runner import RunnerLimits
from executor_svc.virtual.batch import VirtualBatch
from executor_svc.virtual.clock import Clock, RealClock
from executor_svc.virtual.cost import CostModel
from executor_svc.virtual.tokens import VirtualModel


@dataclass(frozen=True, slots=True)
class RunnerHooks:
    """Where a test takes part: each is called with a step id, if set."""

    on_launch: Callable[[int], None] | None = None
    """By the launching thread, once the step is queued."""
    before_result: Callable[[int], None] | None = None
    """By the waiting thread, before each sub-step ends: may block, or raise StepFailure to fail the step."""


class VirtualRunner:
    """Runs steps one after the other, each for as long as the cost model says.

    The clock is the real one unless another is given; with InstantClock results come at once, and only the timing
    that they report follows the cost model. A step's effect on the rows happens when its result is waited for.
    """

    def __init__(
        self,
        limits: RunnerLimits,
        model: VirtualModel | None = None,
        *,
        cost: CostModel | None = None,
        clock: Clock | None = None,
        checked: bool = False,
        hooks: RunnerHooks | None = None,
    ) -> None:
        self.limits = limits
        self.device = "virtual"
        self.dtype = ""
        self.fatal = threading.Event()
        self._batch = VirtualBatch(limits, model or VirtualModel(limits.vocab_size), checked=checked)
        self._cost = cost or CostModel()
        self._clock: Clock = clock or RealClock()
        self._hooks = hooks or RunnerHooks()
        self._failed = False
        # When the device has done all that was launched; None before the first step of a session.
        self._free_at_ns: int | None = None

    def reset(self) -> None:
        """Clears all rows; the KV blocks keep their content."""
        self._batch.reset()
        self._failed = False
        self._free_at_ns = None

    def launch(self, step: Step) -> "VirtualStep":
        """Queues a step behind those before it."""
        now_ns = self._clock.now_ns()
        free_at_ns = now_ns if self._free_at_ns is None else self._free_at_ns
        begin_ns = max(now_ns, free_at_ns)
        times_ns = self._cost.sub_step_ns(step)
        self._free_at_ns = begin_ns + sum(times_ns)
        pending = VirtualStep(self, step, begin_ns, times_ns, idle_ns=begin_ns - free_at_ns)
        if self._hooks.on_launch is not None:
            self._hooks.on_launch(step.plan.step_id)
        return pending

    def close(self) -> None:
        """Frees nothing: there is no device."""

    def finish(self, step: Step, sub_step: int, end_ns: int) -> SubStepOutput:
        """Waits for a sub-step's end and computes its output; StepFailure where it fails or one before it did."""
        if self._failed:
            raise StepFailure(ErrorCode.INTERNAL, "an earlier step failed")
        try:
            if self._hooks.before_result is not None:
                self._hooks.before_result(step.plan.step_id)
            output = self._batch.compute(step, sub_step)
        except StepFailure:
            self._failed = True
            raise
        self._clock.sleep_until_ns(end_ns)
        return output


class VirtualStep:
    """A step in the virtual device's queue."""

    def __init__(
        self, runner: VirtualRunner, step: Step, begin_ns: int, times_ns: list[int], idle_ns: int
    ) -> None:
        self._runner = runner
        self._step = step
        self._times_ns = times_ns
        self._end_ns = begin_ns
        self._idle_ns = idle_ns

    def wait(self, sub_step: int) -> SubStepOutput:
        """Blocks until the sub-step's modelled end. Sub-steps are waited for in order."""
        self._end_ns += self._times_ns[sub_step]
        output = self._runner.finish(self._step, sub_step, self._end_ns)
        return SubStepOutput(
            output.rows,
            output.token_ids,
            output.row_statuses,
            output.logprobs,
            output.prompt_logprobs,
            output.gaps,
            device_ns=self._times_ns[sub_step],
            idle_ns=self._idle_ns if sub_step == 0 else 0,
        )
