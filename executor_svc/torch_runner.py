"""The step runner of the CPU: a worker thread is the stream of device work, steps queue up before it."""

import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field

import structlog
import torch

from executor_svc.cpu_threads import StepThreads
from executor_svc.model_runner import ModelRunner
from executor_svc.outputs import to_output
from executor_svc.plan import ErrorCode, Step, StepFailure, SubStepOutput
from executor_svc.runner import RunnerLimits, sub_steps

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A step in the queue, or behind it; see PendingStep."""

    step: Step
    outputs: tuple[Future[SubStepOutput], ...]

    def wait(self, sub_step: int) -> SubStepOutput:
        return self.outputs[sub_step].result()


@dataclass(frozen=True, slots=True)
class _Reset:
    """A request to clear all rows."""

    done: threading.Event = field(default_factory=threading.Event)


class TorchRunner:
    """A StepRunner over a model on the CPU. The worker thread alone touches the model's and the batch's state."""

    def __init__(self, model_runner: ModelRunner, limits: RunnerLimits, threads: StepThreads) -> None:
        self.limits = limits
        self.device = str(model_runner.state.device)
        self.dtype = str(model_runner.model.embed_tokens.weight.dtype).removeprefix("torch.")
        self.model_runner = model_runner
        self.fatal = threading.Event()
        self._threads = threads
        self._queue: queue.SimpleQueue[LaunchedStep | _Reset | None] = queue.SimpleQueue()
        self._failure: StepFailure | None = None
        self._last_end_ns: int | None = None
        self._worker = threading.Thread(target=self._work, name="device-stream", daemon=True)
        self._worker.start()

    def reset(self) -> None:
        """Clears all rows and any failure; returns when that is done."""
        request = _Reset()
        self._queue.put(request)
        request.done.wait()

    def launch(self, step: Step) -> LaunchedStep:
        """Queues a step; never blocks."""
        launched = LaunchedStep(step, tuple(Future() for _ in sub_steps(step)))
        self._queue.put(launched)
        return launched

    def close(self) -> None:
        """Ends the worker."""
        self._queue.put(None)
        self._worker.join()

    @torch.inference_mode()
    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            if isinstance(task, _Reset):
                self.model_runner.state.clear()
                self._failure = None
                self._last_end_ns = None
                task.done.set()
            else:
                self._run(task)

    def _run(self, launched: LaunchedStep) -> None:
        """Answers every sub-step of a step: with its output, or with the failure of this step or an earlier one."""
        if self._failure is None:
            try:
                torch.set_num_threads(self._threads.of(launched.step))
                for sub_step, output in enumerate(launched.outputs):
                    output.set_result(self._run_sub_step(launched.step, sub_step))
            except Exception as error:
                step_id = launched.step.plan.step_id
                _log.exception("step_failed", step_id=step_id)
                self._failure = as_step_failure(error, step_id)
        for output in launched.outputs:
            if not output.done():
                assert self._failure is not None
                output.set_exception(self._failure)

    def _run_sub_step(self, step: Step, sub_step: int) -> SubStepOutput:
        begin_ns = time.monotonic_ns()
        if sub_step == 0:
            self.model_runner.state.apply(step.plan)
        tensors = self.model_runner.run(step, sub_step)
        end_ns = time.monotonic_ns()
        idle_ns = 0 if self._last_end_ns is None else begin_ns - self._last_end_ns
        self._last_end_ns = end_ns
        return to_output(tensors, end_ns - begin_ns, idle_ns)


def as_step_failure(error: Exception, step_id: int) -> StepFailure:
    """What the scheduler is told of an exception: that memory ran out, or that something is broken."""
    if isinstance(error, StepFailure):
        return error
    reason = (str(error).splitlines() or [""])[0]
    # The CPU's allocator has no exception of its own.
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error):
        return StepFailure(ErrorCode.RESOURCE_EXHAUSTED, f"step {step_id}: out of memory: {reason}")
    return StepFailure(ErrorCode.INTERNAL, f"step {step_id}: {type(error).__name__}: {reason}")
