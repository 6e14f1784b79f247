"""The device in virtual time: it checks each plan as an executor does and runs it when the one before is done."""

from typing import NamedTuple

from executor_svc.virtual import CostModel, RowTable, RunnerLimits, SubStepOutput, VirtualModel, VirtualRunner
from executor_svc.virtual import StepPlan as ExecutorPlan


class TimedOutput(NamedTuple):
    """What a sub-step sampled, and when it was done, in nanoseconds of virtual time."""

    end_ns: int
    output: SubStepOutput


class _SettableClock:
    """The virtual runner's clock: shows what it was set to, and jumps to whatever is waited for."""

    def __init__(self) -> None:
        self.time_ns = 0

    def now_ns(self) -> int:
        return self.time_ns

    def sleep_until_ns(self, deadline_ns: int) -> None:
        self.time_ns = deadline_ns


class VirtualDevice:
    """Runs plans serially, in the order given. With `checked` every KV read is checked, which costs time."""

    def __init__(
        self,
        limits: RunnerLimits,
        cost: CostModel,
        model: VirtualModel | None = None,
        *,
        checked: bool = False,
    ) -> None:
        self.busy_ns = 0
        """Time spent on the steps so far."""
        self._clock = _SettableClock()
        self._runner = VirtualRunner(limits, model, cost=cost, clock=self._clock, checked=checked)
        self._table = RowTable(limits)

    def run(self, plan: ExecutorPlan, arrival_ns: int) -> list[TimedOutput]:
        """Runs a plan that reaches the executor at `arrival_ns`; one output a sub-step.

        Arrivals never run backwards. StepFailure where the plan breaks the contract: a bug of the core.
        """
        self._clock.time_ns = arrival_ns
        pending = self._runner.launch(self._table.apply(plan))
        outputs = []
        for sub_step in range(plan.num_decode_steps):
            output = pending.wait(sub_step)
            self.busy_ns += output.device_ns
            outputs.append(TimedOutput(self._clock.time_ns, output))
        return outputs
