"""A model runner that is one rank among several: it never fails alone."""

from executor_svc.model_runner import ModelRunner
from executor_svc.outputs import SubStepTensors
from executor_svc.parallel.end import end_process
from executor_svc.plan import Step, StepFailure


class RankedModelRunner(ModelRunner):
    """As ModelRunner. What goes wrong on one rank leaves the others waiting for it: that ends the process."""

    def run(self, step: Step, sub_step: int) -> SubStepTensors:
        """As ModelRunner.run; a StepFailure is what all ranks find alike, and anything else does not return."""
        try:
            return super().run(step, sub_step)
        except StepFailure:
            raise
        except Exception as error:
            end_process("step_failed", step_id=step.plan.step_id, exc_info=error)
