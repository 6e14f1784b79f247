"""The virtual executor without threads or gRPC: plans in, outputs out."""

from executor_svc.plan import ErrorCode, StepFailure, StepPlan, SubStepOutput
from executor_svc.row_table import RowTable
from executor_svc.runner import RunnerLimits, sub_steps
from executor_svc.virtual.batch import VirtualBatch
from executor_svc.virtual.tokens import VirtualModel


class VirtualExecutor:
    """Validates and runs plans one by one, as an executor would; `checked` (default) checks every KV read.

    After a failure every plan fails, as on a device, until `reset` opens a new session.
    """

    def __init__(
        self, limits: RunnerLimits, model: VirtualModel | None = None, *, checked: bool = True
    ) -> None:
        self.limits = limits
        self.model = model or VirtualModel(limits.vocab_size)
        self.epoch = 1
        """Number of the session."""
        self.instance = 1
        """Number of the executor's life: another one means that every KV block is lost."""
        self._batch = VirtualBatch(limits, self.model, checked=checked)
        self._table = RowTable(limits)
        self._failures: dict[int, StepFailure] = {}
        self._failed = False

    def apply(self, plan: StepPlan) -> list[SubStepOutput]:
        """Runs a plan; one output a sub-step. StepFailure where it is refused, fails, or follows one that did."""
        if self._failed:
            raise StepFailure(ErrorCode.INTERNAL, "an earlier step failed")
        try:
            step = self._table.apply(plan)
            if (failure := self._failures.pop(plan.step_id, None)) is not None:
                raise failure
            return [self._batch.compute(step, sub_step) for sub_step in sub_steps(step)]
        except StepFailure:
            self._failed = True
            raise

    def fail_step(self, step_id: int, failure: StepFailure | None = None) -> None:
        """Makes the step with this id, in this session, fail instead of running: with INTERNAL if no more is said."""
        self._failures[step_id] = failure or StepFailure(
            ErrorCode.INTERNAL, f"step {step_id} was made to fail"
        )

    def reset(self, *, keep_kv: bool = True) -> None:
        """Opens a new session: rows are clear, step ids begin anew. Without `keep_kv` it is a new instance."""
        self._batch.reset(keep_kv=keep_kv)
        self._table = RowTable(self.limits)
        self._failures.clear()
        self._failed = False
        self.epoch += 1
        if not keep_kv:
            self.instance += 1
