"""The seam between the session, which reads plans, and what runs them: a model on a device, or a pretence of one."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from executor_svc.plan import Step, SubStepOutput


@dataclass(frozen=True, slots=True)
class RunnerLimits:
    """Sizes of a runner's state, as ExecutorDescription reports them. All counts, `num_blocks` with block 0."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_model_len: int
    max_num_batched_tokens: int
    max_num_decode_steps: int
    max_plans_in_flight: int
    vocab_size: int


class PendingStep(Protocol):
    """A launched step."""

    def wait(self, sub_step: int) -> SubStepOutput:
        """Blocks until the sub-step is done and returns what it sampled; StepFailure where the step failed.

        Called at most once for each sub-step, in order, by one thread at a time, while others may launch.
        """


class StepRunner(Protocol):
    """Runs validated steps in order. `reset` and `launch` are called by one thread at a time."""

    limits: RunnerLimits
    device: str
    """What Describe reports: "cpu", "cuda:0", "virtual"."""
    dtype: str
    fatal: threading.Event
    """Set once the device is lost: this process will never run a step again, and must be started anew."""

    def reset(self) -> None:
        """Clears all rows. Called before each session, with no step unfinished; KV blocks keep their content."""

    def launch(self, step: Step) -> PendingStep:
        """Queues a step on the device and returns at once, without waiting for it or for any before it.

        After a step has failed, every step launched behind it must fail too, unrun, until `reset`.
        """

    def close(self) -> None:
        """Frees the device. No step is unfinished."""


def sub_steps(step: Step) -> Sequence[int]:
    """Numbers of the sub-steps that a step is answered with."""
    return range(step.plan.num_decode_steps)
