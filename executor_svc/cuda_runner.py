"""The step runner of CUDA: work is queued by whoever launches, and results are copied out behind it.

Steps are queued by the calling thread, the session's reader: a thread of its own would add a hand-over to every step,
and queueing one is short. Compute goes to the default stream, as every thread's current one; results to another.
"""

import threading
from collections import deque
from dataclasses import dataclass, field

import structlog
import torch

from executor_svc.model_runner import ModelRunner
from executor_svc.outputs import SubStepTensors, to_output
from executor_svc.plan import Step, StepFailure, SubStepOutput
from executor_svc.runner import RunnerLimits, sub_steps
from executor_svc.torch_runner import as_step_failure

_log = structlog.get_logger(__name__)


class _Slot:
    """Room for the results of one sub-step, and the points in the device's work around it."""

    def __init__(self, num_results: int, device: torch.device) -> None:
        self.device = torch.empty(num_results, dtype=torch.int32, device=device)
        self.host = torch.empty(num_results, dtype=torch.int32, pin_memory=True)
        self.start = torch.cuda.Event(enable_timing=True)
        self.end = torch.cuda.Event(enable_timing=True)
        self.copied = torch.cuda.Event()
        self.kept: SubStepTensors | None = None
        """What is being copied: its memory must not be given out before."""


@dataclass(frozen=True, slots=True)
class _SubStep:
    """A sub-step whose work is queued."""

    slot: _Slot
    output: SubStepTensors
    """On the host, once the slot's `copied` is passed."""


@dataclass(slots=True)
class CudaStep:
    """A launched step; see PendingStep."""

    runner: "CudaRunner"
    step_id: int
    sub_steps: list[_SubStep] = field(default_factory=list)
    failure: StepFailure | None = None
    """Of the first sub-step that is not in `sub_steps`."""

    def wait(self, sub_step: int) -> SubStepOutput:
        if sub_step >= len(self.sub_steps):
            assert self.failure is not None
            raise self.failure
        return self.runner.finish(self.step_id, self.sub_steps[sub_step])


class CudaRunner:
    """A StepRunner over a model on a CUDA device. `launch` never waits for the device, but with --verify.

    A sub-step's results are copied to a slot of their own on the compute stream, and from there to the host on the
    copy stream: the next step may overwrite the graph's results while the copy to the host is still under way.
    """

    def __init__(self, model_runner: ModelRunner, limits: RunnerLimits) -> None:
        self.limits = limits
        self.device = str(model_runner.state.device)
        self.dtype = str(model_runner.model.embed_tokens.weight.dtype).removeprefix("torch.")
        self.fatal = threading.Event()
        self.model_runner = model_runner
        self.copy_stream = torch.cuda.Stream(model_runner.state.device)
        # Of queueing a step, and of waiting for one: those queued before another failed to be are still good.
        self._failure: StepFailure | None = None
        self._late_failure: StepFailure | None = None
        num_slots = limits.max_plans_in_flight * limits.max_num_decode_steps + 2
        self._slots = [self._make_slot() for _ in range(num_slots)]
        # Taken by the launching thread, given back by the waiting one.
        self._free = deque(self._slots)
        # The slot of the sub-step that was waited for last, whose end the next one's idle time counts from.
        self._last_waited: _Slot | None = None

    def reset(self) -> None:
        """Clears all rows and any failure. No step is unfinished, but those behind a failure were never waited for."""
        try:
            torch.cuda.synchronize(self.model_runner.state.device)
        except RuntimeError as error:
            self._fail(0, error, "reset")
            return
        self.model_runner.state.clear()
        self._failure = self._late_failure = None
        self._last_waited = None
        for slot in self._slots:
            slot.kept = None
        self._free = deque(self._slots)

    @torch.inference_mode()
    def launch(self, step: Step) -> CudaStep:
        """Queues a step's work; what fails while it is queued fails the step and all behind it."""
        launched = CudaStep(self, step.plan.step_id)
        if self._failure is None:
            try:
                for sub_step in sub_steps(step):
                    launched.sub_steps.append(self._queue(step, sub_step))
            except Exception as error:
                self._fail(launched.step_id, error, _summary(step))
        launched.failure = self._failure
        return launched

    def finish(self, step_id: int, sub_step: _SubStep) -> SubStepOutput:
        """Waits for the results of a sub-step; called for each in order. Once it has failed it fails for all behind."""
        if self._late_failure is not None:
            raise self._late_failure
        slot, last = sub_step.slot, self._last_waited
        try:
            slot.copied.synchronize()
            device_ns = _elapsed_ns(slot.start, slot.end)
            idle_ns = 0 if last is None else _elapsed_ns(last.end, slot.start)
            output = to_output(sub_step.output, device_ns, idle_ns)
        except Exception as error:
            self._late_failure = self._fail(step_id, error, "")
            raise self._late_failure from error
        slot.kept = None
        self._last_waited = slot
        if last is not None:
            self._free.append(last)
        return output

    def close(self) -> None:
        """Frees nothing before the process ends; no step is unfinished."""

    def _queue(self, step: Step, sub_step: int) -> _SubStep:
        """Queues one sub-step, and behind it the copies of its results."""
        slot = self._take_slot()
        slot.start.record()
        if sub_step == 0:
            self.model_runner.state.apply(step.plan)
        tensors = self.model_runner.run(step, sub_step)
        num_results = 0
        if tensors.sampled is not None:
            results = tensors.sampled.results
            num_results = results.numel()
            slot.device[:num_results].copy_(results.view(-1))
        slot.end.record()
        with torch.cuda.stream(self.copy_stream):
            self.copy_stream.wait_event(slot.end)
            slot.host[:num_results].copy_(slot.device[:num_results], non_blocking=True)
            output = tensors.to(lambda tensor: self._copy(tensor, tensors, slot))
            slot.copied.record()
        slot.kept = tensors
        return _SubStep(slot, output)

    def _copy(self, tensor: torch.Tensor, tensors: SubStepTensors, slot: _Slot) -> torch.Tensor:
        """The pinned tensor to which one of the sub-step's tensors is copied, on the current stream."""
        if tensors.sampled is not None and tensor is tensors.sampled.results:
            return slot.host[: tensor.numel()].view(tensor.shape)
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def _take_slot(self) -> _Slot:
        if not self._free:
            # More steps than the limits allow are unanswered: slower, not wrong.
            self._slots.append(self._make_slot())
            return self._slots[-1]
        return self._free.popleft()

    def _make_slot(self) -> _Slot:
        return _Slot(2 * (self.limits.max_num_seqs + 1), self.model_runner.state.device)

    def _fail(self, step_id: int, error: Exception, plan: str) -> StepFailure:
        """Notes a failure, the first of the session, and whether the device is lost with it."""
        _log.error("step_failed", step_id=step_id, plan=plan, exc_info=error)
        failure = as_step_failure(error, step_id)
        if is_device_lost(error):
            self.fatal.set()
        if self._failure is None:
            self._failure = failure
        return failure


def is_device_lost(error: Exception) -> bool:
    """Whether an exception is an error of CUDA, after which no work of this process succeeds."""
    if isinstance(error, StepFailure | torch.OutOfMemoryError) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)


def _elapsed_ns(start: torch.cuda.Event, end: torch.cuda.Event) -> int:
    milliseconds: float = start.elapsed_time(end)
    return max(0, round(milliseconds * 1e6))


def _summary(step: Step) -> str:
    """What a step does, for the log: rows and lengths, no tokens."""
    plan = step.plan
    prefills = [(run.row, run.first_position, run.num_tokens) for run in plan.prefills]
    return (
        f"release {plan.release_rows.tolist()} start {[start.row for start in plan.starts]} "
        f"append to {plan.new_block_rows.tolist()} prefill {prefills} "
        f"decode {plan.decode_rows.tolist()} at {step.decode_positions.tolist()} "
        f"for {plan.decode_row_steps.tolist()}"
    )
