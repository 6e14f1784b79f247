"""Who has the runner: one session at a time, the newest, fenced by the epoch that it was opened with."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from executor_svc.locks import held
from executor_svc.profile.spans import SpanTap
from executor_svc.runner import StepRunner
from executor_svc.session import ExecutorStopping, OpenRefused, Session, SessionReplaced
from nanoserve.executor.v1 import executor_pb2 as pb

# How soon a session that waits for the device notices that it has ended.
_WAIT_SLICE_SECONDS = 0.01


class SessionManager:
    """Lets one session at a time have the runner. Thread-safe."""

    def __init__(self, runner: StepRunner) -> None:
        self.tap = SpanTap()
        """Where sessions look whether their steps are to be noted."""
        self._runner = runner
        self._lock = threading.Lock()
        self._epoch = 0
        self._current: Session | None = None
        self._stopping = False
        # Whoever holds it owns the device between two sessions.
        self._device_lock = threading.Lock()
        self._last_opened: Session | None = None
        # The thread that drains it, once another session wants the device.
        self._drainer: threading.Thread | None = None

    def state(self) -> tuple[int, bool]:
        """The current epoch, and whether its session is alive. Never blocks on a step."""
        with self._lock:
            return self._epoch, self._current is not None and self._current.alive

    def claim(self, opening: pb.OpenSession) -> Session:
        """Compares and sets the epoch and ends the former session; OpenRefused where that is not allowed."""
        with self._lock:
            if self._stopping:
                raise ExecutorStopping("the executor is stopping")
            if opening.expected_epoch != self._epoch:
                raise OpenRefused(f"expected_epoch: {opening.expected_epoch}, but the epoch is {self._epoch}")
            former = self._current
            if former is not None and former.alive:
                same = former.scheduler_id == opening.scheduler_id
                if not same and not opening.take_over:
                    raise OpenRefused(f"the session of scheduler {former.scheduler_id!r} is alive")
                former.end(SessionReplaced(f"replaced by scheduler {opening.scheduler_id!r}"))
            self._epoch += 1
            self._current = Session(opening.scheduler_id, self._epoch, self._runner, self.tap)
            return self._current

    def prepare(self, session: Session) -> None:
        """Returns when the device is idle and all rows are clear, or when the session has ended.

        The wait for a step that hangs is a thread's of its own, one for all who wait: a scheduler that connects again
        and again leaves none behind.
        """
        while session.alive:
            if self._device_lock.acquire(timeout=_WAIT_SLICE_SECONDS):
                try:
                    # Claims come in order but may get here in any: only the newest is alive, and only it matters.
                    if session.alive and self._drained():
                        self._runner.reset()
                        self._last_opened = session
                        return
                finally:
                    self._device_lock.release()

    def _drained(self) -> bool:
        """Waits a moment for the end of what the last session launched; whether it has come."""
        if self._last_opened is None:
            return True
        if self._drainer is None:
            name = f"session-{self._last_opened.epoch}-drainer"
            self._drainer = threading.Thread(target=self._last_opened.drain, name=name, daemon=True)
            self._drainer.start()
        self._drainer.join(_WAIT_SLICE_SECONDS)
        if self._drainer.is_alive():
            return False
        self._drainer = None
        return True

    @contextmanager
    def quiet(self, timeout_seconds: float) -> Iterator[None]:
        """Keeps the device idle: no step runs, none is launched, no session is prepared.

        TimeoutError where the steps under way do not end in time.
        """
        deadline = time.monotonic() + timeout_seconds
        with held(self._device_lock, deadline):
            if self._last_opened is None:
                yield
                return
            with self._last_opened.quiet(deadline):
                yield

    def stop(self) -> None:
        """Refuses new sessions, and lets the current one answer the plans that it has taken."""
        with self._lock:
            self._stopping, current = True, self._current
        if current is not None:
            current.finish(ExecutorStopping("the executor is stopping"))

    def close(self) -> None:
        """Ends what is left and frees the runner, when nothing runs on it any more."""
        self.stop()
        with self._device_lock:
            if self._last_opened is not None:
                self._last_opened.end(ExecutorStopping("the executor is stopping"))
                self._last_opened.drain()
            self._runner.close()
