"""A step of one rank among several: it never fails alone."""

from dataclasses import dataclass

from executor_svc.parallel.end import end_process
from executor_svc.plan import ErrorCode, StepFailure, SubStepOutput
from executor_svc.runner import PendingStep


@dataclass(frozen=True, slots=True)
class RankedStep:
    """A launched step; see PendingStep. What fails on one rank alone leaves the others waiting: it ends the process."""

    step_id: int
    pending: PendingStep

    def wait(self, sub_step: int) -> SubStepOutput:
        """As PendingStep.wait; the only StepFailure is DATA_LOSS, which all ranks find alike in the same plans."""
        try:
            return self.pending.wait(sub_step)
        except StepFailure as failure:
            if failure.code is ErrorCode.DATA_LOSS:
                raise
            end_process("step_failed", step_id=self.step_id, reason=failure.description)
        except Exception as error:
            end_process("step_failed", step_id=self.step_id, exc_info=error)
