"""A whole server on this machine: an executor and a scheduler as child processes, restarted when they end.

One thread starts, watches and ends both. It must outlive them, because a child dies with the thread that made it;
so it is not the caller's, which may be a short-lived one.
"""

import math
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from nanoserve_client.child import Child
from nanoserve_client.errors import InvalidRequest, ServerStartError
from nanoserve_client.forward import LOG_LEVELS, at_least
from nanoserve_client.service import Log, Service

# -P: what lies in the present folder is none of a service's modules.
EXECUTOR_COMMAND = (sys.executable, "-P", "-m", "executor_svc")
SCHEDULER_COMMAND = (sys.executable, "-P", "-m", "scheduler_svc")

_POLL_SECONDS = 0.05
_SIGNAL_SECONDS = 0.2  # at most until a signal is noticed
_TELL_SECONDS = 10.0  # how often a long start shows a sign of life
# A socket's path holds at most 107 bytes on Linux, 103 elsewhere.
_LONGEST_FOLDER_BYTES = 80


class LocalServer:
    """Runs an executor and a scheduler, and restarts either when it ends.

    `with LocalServer() as server: Client(server.address)`. `model` is a directory or a hub id, None the demo's;
    `listen` is where the scheduler listens, port 0 picking one; the executor's unix socket lies in a private folder.
    `log` gets (service, line) for each line of "executor" and "scheduler", and of "supervisor" for what this class
    does; of structured lines those of `log_level` ("debug", "info", "warning" or "error") or more severe. The commands
    say how a service is started, so that another interpreter or a wrapper can be put before it.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        listen: str = "127.0.0.1:0",
        executor_flags: Sequence[str] = (),
        scheduler_flags: Sequence[str] = (),
        start_timeout: float = 600.0,
        grace_seconds: float = 45.0,
        log_level: str = "info",
        log: Log = lambda service, line: None,
        executor_command: Sequence[str] = EXECUTOR_COMMAND,
        scheduler_command: Sequence[str] = SCHEDULER_COMMAND,
    ) -> None:
        if log_level not in LOG_LEVELS:
            raise InvalidRequest(f"log_level: must be one of {', '.join(LOG_LEVELS)}, got {log_level!r}")
        model_flags = [] if model is None else [f"--model={model}"]
        # What a service listens at is in a line of level info, so that level is on whatever is passed on.
        level_flag = f"--log-level={'debug' if log_level == 'debug' else 'info'}"
        self._executor_command = [*executor_command, *model_flags, *executor_flags, level_flag]
        self._scheduler_command = [
            *(*scheduler_command, *model_flags, *scheduler_flags),
            *(level_flag, f"--listen={listen}"),
        ]
        self._start_timeout = start_timeout
        self._grace_seconds = grace_seconds
        self._log = at_least(log_level, log)
        self._tells_progress = log_level in ("debug", "info")
        self._wake = threading.Event()
        self._up = threading.Event()
        self._stopping = threading.Event()
        self._impatient = threading.Event()
        # Not the thread's join: an exception out of that (KeyboardInterrupt) makes a live thread count as ended.
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._services: list[Service] = []  # the executor, then the scheduler
        self._thread = threading.Thread(target=self._run, name="nanoserve-supervisor", daemon=True)
        self.address = listen
        """Where the scheduler listens; with port 0, known once it has started."""
        self.executor_address = ""
        """Where the executor listens, once it has been started."""
        self.killed = False
        """Whether a process had to be killed at the end, because it outlasted the grace."""

    def start(self) -> Self:
        """Starts both and waits until both serve; ServerStartError where one does not, and then none runs.

        None runs either where `terminate` came first.
        """
        self._thread.start()
        try:
            _wait(self._up)
        except BaseException:  # such as KeyboardInterrupt
            self.kill()
            raise
        self._raise_failure()
        return self

    def wait(self, timeout: float | None = None) -> bool:
        """Waits, at most `timeout` seconds, until the server has ended; says whether it has, raises if it failed."""
        _wait(self._ended, timeout)
        self._raise_failure()
        return self._ended.is_set()

    def terminate(self) -> None:
        """Begins what `stop` does, and does not wait for its end."""
        self._stopping.set()
        self._wake.set()

    def stop(self) -> None:
        """Ends both processes, the scheduler first, which drains; each is killed after `grace_seconds`."""
        self.terminate()
        if self._thread.ident is not None:
            _wait(self._ended)

    def reload_keys(self) -> None:
        """Has the scheduler, if it listens, read its --api-key-file again."""
        for service in self._services[1:]:
            if service.child.listening is not None:
                service.child.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        """Ends both processes at once, also while `stop` waits for them."""
        self._impatient.set()
        self.stop()

    @property
    def executor_pid(self) -> int:
        """Process id of the executor of this moment, which has a small parent; IndexError before the start."""
        return self._services[0].child.serving_pid

    @property
    def scheduler_pid(self) -> int:
        """Process id of the scheduler of this moment; IndexError before the start."""
        return self._services[1].child.pid

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            with private_folder() as folder:
                try:
                    self._start_both(Path(folder))
                    if not self._stopping.is_set():
                        self._up.set()
                    self._supervise()
                finally:
                    for service in reversed(self._services):
                        self._stop_child(service.name, service.child)
        except BaseException as failure:
            self._failure = failure
        finally:
            self._ended.set()
            self._up.set()

    def _start_both(self, folder: Path) -> None:
        begun = time.monotonic()
        self.executor_address = f"unix:{folder / 'executor.sock'}"
        for name, command in (
            ("executor", [*self._executor_command, f"--listen={self.executor_address}"]),
            ("scheduler", [*self._scheduler_command, f"--executor={self.executor_address}"]),
        ):
            # Behind TLS it would want to know who asks.
            asks_health = not any(word.startswith("--tls-") for word in command)
            service = Service(name, command, self._log, self._wake.set, asks_health=asks_health)
            self._services.append(service)
        self._await_serving(begun)
        scheduler = self._services[1]
        self.address = scheduler.child.listening or self.address
        scheduler.command.append(f"--listen={self.address}")  # a successor takes the port that was picked

    def _await_serving(self, begun: float) -> None:
        waiting = [service.name for service in self._services]
        tell_at = _TELL_SECONDS
        while waiting and not self._stopping.is_set():
            seconds = time.monotonic() - begun
            for service in self._services:  # those that serve too: one may end while the other starts
                if service.serving() and service.name in waiting:
                    waiting.remove(service.name)
                    self._progress(f"{service.name} serves after {seconds:.1f} s")
            if waiting and seconds > tell_at:
                tell_at += _TELL_SECONDS
                self._progress(f"waiting for the {' and the '.join(waiting)}, {seconds:.0f} s so far")
            if waiting and seconds > self._start_timeout:
                reason = f"the {waiting[0]} does not serve after {self._start_timeout:g} s"
                raise ServerStartError(waiting[0], reason, None)
            self._stopping.wait(_POLL_SECONDS if waiting else 0)

    def _progress(self, line: str) -> None:
        if self._tells_progress:
            self._log("supervisor", line)

    def _supervise(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            pauses = [service.keep_running() for service in self._services]
            if not self._stopping.is_set():
                self._wake.wait(min((p for p in pauses if p is not None), default=None))

    def _stop_child(self, name: str, child: Child) -> None:
        end = time.monotonic() + self._grace_seconds
        if self._stopping.is_set():
            child.terminate()
            while not (child.exited.wait(_POLL_SECONDS) or self._impatient.is_set()):
                if time.monotonic() > end:
                    self._log(
                        "supervisor", f"{name} has not ended within {self._grace_seconds:g} s; killing it"
                    )
                    self.killed = True
                    break
        child.kill()
        child.exited.wait()


def _wait(event: threading.Event, timeout: float | None = None) -> None:
    """Waits in slices: a signal that another thread received runs its handler only when the main thread wakes."""
    end = math.inf if timeout is None else time.monotonic() + timeout
    while not event.wait(max(0.0, min(_SIGNAL_SECONDS, end - time.monotonic()))) and time.monotonic() < end:
        pass


def private_folder() -> TemporaryDirectory[str]:
    """A new folder for sockets, open to this user alone, with a path short enough for them."""
    folder = TemporaryDirectory(prefix="nanoserve-")
    if len(folder.name.encode()) <= _LONGEST_FOLDER_BYTES:
        return folder
    folder.cleanup()
    return TemporaryDirectory(prefix="nanoserve-", dir="/tmp")
