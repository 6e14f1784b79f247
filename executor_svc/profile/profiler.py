"""One profile at a time: begun and ended while the device is idle, and ended by itself in any case."""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import structlog

from executor_svc.profile.spans import SpanTap, StepSpans
from nanoserve.profiles import MAX_SECONDS, MAX_STEPS, Profile

# How long to wait for steps under way to end, before a profile begins; one that ends waits again and again.
_QUIET_SECONDS = 10.0
# How long StopProfile waits for the end of the steps and for the trace to be written.
_STOP_SECONDS = 60.0
_CLOSE_SECONDS = 2.0
# A message with the trace and the spans must stay under the limit of the links, 64 MiB.
_MAX_TRACE_BYTES = 48 * 1024 * 1024
_logger = structlog.get_logger()


class ProfileRefused(Exception):
    """A profile cannot be begun or ended now; the message says why."""


@dataclass(frozen=True, slots=True)
class Profiling:
    """How an executor that may be profiled is."""

    trace: "DeviceTrace | None"
    """None: there are only spans."""
    max_seconds: float = MAX_SECONDS


class DeviceTrace(Protocol):
    """What records the device itself. `start` and `stop` are called while it is idle, all by one thread."""

    def start(self) -> None:
        """Begins to record."""

    def stop(self) -> None:
        """Ends the recording."""

    def write(self) -> Path:
        """Writes a gzipped Chrome trace; called after `stop`, while steps may run."""


class StepsGoOn(ProfileRefused):
    """The steps under way do not end, so neither does the profile; another try may find that they did."""


@dataclass(slots=True)
class _Recording:
    """A profile from its start to the moment it is collected."""

    spans: StepSpans
    thread: threading.Thread | None = None
    started: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)
    path: Path | None = None
    failure: str | None = None
    """What kept it from starting."""


class Profiler:
    """Thread-safe. A thread of the profile's own starts, watches and ends the trace."""

    def __init__(
        self,
        quiet: Callable[[float], AbstractContextManager[None]],
        tap: SpanTap,
        profiling: Profiling,
    ) -> None:
        """`quiet` keeps the device idle, raising TimeoutError after so many seconds; sessions record into `tap`."""
        self._quiet, self._tap = quiet, tap
        self._trace, self._max_seconds = profiling.trace, profiling.max_seconds
        self._lock = threading.Lock()
        self._recording: _Recording | None = None

    def start(self, num_steps: int, after_step_id: int) -> None:
        """Begins a profile of so many forward passes, 0: of as many as may be; returns when it is recorded.

        One that has ended and was never collected is dropped. ProfileRefused while one is recorded.
        """
        with self._lock:
            if self._recording is not None and not self._recording.finished.is_set():
                raise ProfileRefused("a profile is being recorded already")
            recording = self._recording = _Recording(StepSpans(num_steps or MAX_STEPS, after_step_id))
            recording.thread = threading.Thread(
                target=self._record, args=(recording,), name="profiler", daemon=True
            )
            recording.thread.start()
        recording.started.wait()
        if recording.failure is not None:
            raise ProfileRefused(recording.failure)

    def stop(self) -> Profile:
        """Ends the profile and returns it. ProfileRefused where there is none, or steps do not end."""
        with self._lock:
            recording = self._recording
        if recording is None or recording.failure is not None:
            raise ProfileRefused("no profile is being recorded")
        recording.spans.full.set()
        if not recording.finished.wait(_STOP_SECONDS):
            raise StepsGoOn("the steps under way do not end")
        with self._lock:
            if self._recording is not recording:
                raise ProfileRefused("another call has taken the profile")
            self._recording = None
        spans = recording.spans.spans()
        path, trace = recording.path, b""
        if path is not None and path.stat().st_size <= _MAX_TRACE_BYTES:
            trace = path.read_bytes()
        return Profile(str(path or ""), recording.spans.num_steps, spans, trace)

    def close(self) -> None:
        """Ends a profile that is being recorded, waiting some seconds at most."""
        with self._lock:
            recording = self._recording
        if recording is not None and recording.thread is not None:
            recording.spans.full.set()
            recording.thread.join(_CLOSE_SECONDS)

    def _record(self, recording: _Recording) -> None:
        """The profile's thread."""
        try:
            with self._quiet(_QUIET_SECONDS):
                if self._trace is not None:
                    self._trace.start()
                self._tap.spans = recording.spans
        except Exception as error:
            _logger.exception("profile_failed")
            recording.failure = f"the profile could not be started: {error or type(error).__name__}"
            recording.finished.set()
            recording.started.set()
            return
        recording.started.set()
        recording.spans.full.wait(self._max_seconds)
        recording.spans.full.set()
        try:
            self._end_trace()
            if self._trace is not None:
                recording.path = self._trace.write()
        except Exception:
            _logger.exception("profile_not_written")
        finally:
            recording.finished.set()
        _logger.info("profile_ended", num_steps=recording.spans.num_steps, path=str(recording.path or ""))

    def _end_trace(self) -> None:
        """Ends the trace as soon as the device is idle: it must not be ended under a running operator."""
        while True:
            try:
                with self._quiet(_QUIET_SECONDS):
                    self._tap.spans = None
                    if self._trace is not None:
                        self._trace.stop()
                return
            except TimeoutError:
                _logger.warning("profile_waits", reason="the steps under way do not end")
                time.sleep(_QUIET_SECONDS)
