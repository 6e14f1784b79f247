"""Sessions: who may send plans, and what becomes of each plan from its arrival to its answer.

A session has a reading thread, which decodes, validates and launches plan k+1 while plan k runs, and an answering
thread, which waits for results in order. It can end at any moment (its client left, another session took over): from
then on nothing is launched, and whoever needs the device drains what had been.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import structlog

from executor_svc import wire
from executor_svc.locks import held
from executor_svc.plan import ErrorCode, StepFailure
from executor_svc.plan_checks import invalid
from executor_svc.profile.spans import SpanTap
from executor_svc.row_table import RowTable
from executor_svc.runner import PendingStep, StepRunner
from nanoserve.executor.v1 import executor_pb2 as pb

# How long after a failure plans that were already under way may still arrive and be answered SKIPPED; a scheduler
# that closes its side of the stream ends the wait at once.
_SKIP_LINGER_SECONDS = 0.2
# How often whoever wants the device idle looks whether it is.
_QUIET_SLICE_SECONDS = 0.0005

_logger = structlog.get_logger()


class SessionEnded(Exception):
    """A session's stream must end now; the message says why. Subclasses say with what status."""


class OpenRefused(SessionEnded):
    """OpenSession names a stale epoch, or another scheduler's session is alive."""


class SessionReplaced(SessionEnded):
    """Another session took over."""


class ExecutorStopping(SessionEnded):
    """The executor is stopping."""


class OpeningMissing(SessionEnded):
    """The stream's first message did not come in time."""


class MessageOutOfOrder(SessionEnded):
    """A message came that the contract does not allow there."""


class SessionCrashed(SessionEnded):
    """A bug of the executor: its stack is for the log, not for the scheduler."""

    def __init__(self) -> None:
        super().__init__("a bug of the executor: see its log")


@dataclass(slots=True)
class _Launched:
    """A plan on the device."""

    step_id: int
    num_sub_steps: int
    pending: PendingStep
    queue_ns: int
    host_ns: int
    num_waited: int = 0


@dataclass(frozen=True, slots=True)
class _Refused:
    """A plan that was not launched: it broke the contract, or came after a failure (None)."""

    step_id: int
    failure: StepFailure | None


class Session:
    """One scheduler's stream of plans. Every method may be called by any thread, except where one is named."""

    def __init__(self, scheduler_id: str, epoch: int, runner: StepRunner, tap: SpanTap) -> None:
        self.scheduler_id = scheduler_id
        self.epoch = epoch
        self._runner, self._tap = runner, tap
        self._limits = runner.limits
        self._table = RowTable(runner.limits)
        # Held while a plan is launched, and while a result is waited for.
        self._launch_lock = threading.Lock()
        self._wait_lock = threading.Lock()
        # Launched plans whose last result has not been waited for; appended under the first lock, popped under the
        # second.
        self._launched: deque[_Launched] = deque()
        # What to answer, in the order of arrival; None: no more is coming.
        self._answers: SimpleQueue[_Launched | _Refused | SessionEnded | None] = SimpleQueue()
        self._num_unanswered = 0
        self._count_lock = threading.Lock()
        self._failed = False
        self._closed = False
        self._ended = threading.Event()
        self._reason: SessionEnded | None = None

    @property
    def alive(self) -> bool:
        """Whether the session's stream is open."""
        return not self._ended.is_set()

    def end(self, reason: SessionEnded | None = None) -> None:
        """Ends the session at once, without waiting for anything; the first reason given is its stream's status."""
        if self._reason is None:
            self._reason = reason
        self._ended.set()
        self._answers.put(None)

    def finish(self, last: SessionEnded | None = None) -> None:
        """Takes no more plans; once those taken are answered, the stream ends, with `last` as its status if set."""
        with self._launch_lock:
            if not self._closed:
                self._closed = True
                self._answers.put(last)

    def wait_ended(self) -> None:
        """Returns when the session has ended."""
        self._ended.wait()

    def drain(self) -> None:
        """Returns when nothing that the session launched is unfinished. The session must have ended."""
        with self._launch_lock:
            self._closed = True
        with self._wait_lock:
            while self._launched:
                launched = self._launched[0]
                try:
                    while launched.num_waited < launched.num_sub_steps:
                        launched.pending.wait(launched.num_waited)
                        launched.num_waited += 1
                except StepFailure:
                    pass  # its session is over: there is nobody to tell
                except Exception:
                    _logger.exception("step_failed", step_id=launched.step_id)
                self._launched.popleft()

    @contextmanager
    def quiet(self, deadline: float) -> Iterator[None]:
        """Keeps the device idle: nothing is launched, and all that was has been waited for.

        TimeoutError where that is not so by `deadline`, seconds of the monotonic clock.
        """
        while True:
            with held(self._launch_lock, deadline):
                while self._launched and self.alive and time.monotonic() < deadline:
                    time.sleep(_QUIET_SLICE_SECONDS)
                with held(self._wait_lock, deadline):
                    if not self._launched:
                        yield
                        return
            # The session has ended, and its drain needs the first lock.
            time.sleep(_QUIET_SLICE_SECONDS)

    def submit(self, plan: pb.StepPlan, arrived_ns: int) -> None:
        """Decodes, validates and launches a plan that arrived at `arrived_ns`. Called by the reading thread."""
        with self._launch_lock:
            if self._closed or self._ended.is_set():
                return
            with self._count_lock:
                self._num_unanswered += 1
            if self._failed:
                self._answers.put(_Refused(plan.step_id, None))
                return
            try:
                launched = self._launch(plan, arrived_ns)
            except Exception as error:
                self._failed = True
                failure = error if isinstance(error, StepFailure) else _internal(plan.step_id, error)
                self._answers.put(_Refused(plan.step_id, failure))
                return
            self._launched.append(launched)
            self._answers.put(launched)

    def _launch(self, plan: pb.StepPlan, arrived_ns: int) -> _Launched:
        if self._num_unanswered > self._limits.max_plans_in_flight:
            raise invalid("step_id", f"more than {self._limits.max_plans_in_flight} plans in flight")
        begin_ns = time.monotonic_ns()
        step = self._table.apply(wire.decode_plan(plan, self._limits.vocab_size))
        launch_ns = time.monotonic_ns()
        pending = self._runner.launch(step)
        end_ns, num_sub_steps = time.monotonic_ns(), step.plan.num_decode_steps
        if (spans := self._tap.spans) is not None:
            spans.launched(self.epoch, plan.step_id, num_sub_steps, begin_ns, launch_ns, end_ns)
        return _Launched(plan.step_id, num_sub_steps, pending, launch_ns - arrived_ns, end_ns - begin_ns)

    def results(self) -> Iterator[pb.StepResult]:
        """Yields the answers in order; called by the answering thread. SessionEnded where the stream ends early."""
        failed = False
        while True:
            try:
                answer = self._answers.get(timeout=_SKIP_LINGER_SECONDS if failed else None)
            except Empty:
                return
            if not self.alive:
                break
            if answer is None:
                return
            if isinstance(answer, SessionEnded):
                raise answer
            if failed:
                yield self._answered(wire.encode_skipped(answer.step_id))
                continue
            for result in self._resolve(answer):
                failed = result.status == pb.STEP_STATUS_FAILED
                yield self._answered(result) if result.last else result
        if self._reason is not None:
            raise self._reason

    def _answered(self, last_result: pb.StepResult) -> pb.StepResult:
        """Counts a plan as answered: before its last result is sent, as the next plan may come right after."""
        with self._count_lock:
            self._num_unanswered -= 1
        return last_result

    def _resolve(self, answer: _Launched | _Refused) -> Iterator[pb.StepResult]:
        """The results of one plan, as they come: up to its first failure, and none once the session has ended."""
        if isinstance(answer, _Refused):
            assert answer.failure is not None
            yield self._failure(answer.step_id, 0, answer.failure)
            return
        for sub_step in range(answer.num_sub_steps):
            with self._wait_lock:
                if not self.alive:
                    return
                result = self._wait(answer, sub_step)
            yield result
            if result.last:
                return

    def _wait(self, launched: _Launched, sub_step: int) -> pb.StepResult:
        step_id, last = launched.step_id, sub_step == launched.num_sub_steps - 1
        failure = None
        try:
            output = launched.pending.wait(sub_step)
        except StepFailure as error:
            failure = error
        except Exception as error:
            failure = _internal(step_id, error)
        spans = self._tap.spans
        ready_ns = 0 if spans is None else time.monotonic_ns()
        launched.num_waited += 1
        if last or failure is not None:
            self._launched.popleft()
        if failure is not None:
            self._failed = True
            return self._failure(step_id, sub_step, failure)
        queue_ns, host_ns = (launched.queue_ns, launched.host_ns) if sub_step == 0 else (0, 0)
        result = wire.encode_result(step_id, sub_step, last, output, queue_ns, host_ns)
        if spans is not None:
            spans.answered(self.epoch, step_id, sub_step, ready_ns, output.device_ns, output.idle_ns)
        return result

    def _failure(self, step_id: int, sub_step: int, failure: StepFailure) -> pb.StepResult:
        _logger.warning(
            "step_failed",
            epoch=self.epoch,
            step_id=step_id,
            code=failure.code.name,
            field=failure.field,
            description=failure.description,
            rows=failure.rows,
        )
        return wire.encode_failure(step_id, sub_step, failure)


def _internal(step_id: int, error: Exception) -> StepFailure:
    """A bug of the executor: its stack is for the log, not for the scheduler."""
    _logger.error("step_crashed", step_id=step_id, exc_info=error)
    return StepFailure(ErrorCode.INTERNAL, f"{type(error).__name__}: see the executor's log")
