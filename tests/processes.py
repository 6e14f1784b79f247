"""Services as processes whose logs tests read."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_WAIT_SECONDS = 30


class Process:
    """A service whose log lines are read as they come."""

    def __init__(self, module: str, *flags: str, environment: Mapping[str, str] | None = None) -> None:
        """`environment` is added to that of the tests."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *flags],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "GRPC_VERBOSITY": "NONE", **(environment or {})},
        )
        self.lines: list[str] = []
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._more:
                self.lines.append(line.strip())
                self._more.notify_all()

    def event(self, name: str) -> dict[str, Any]:
        """The log line of that event, waited for."""

        def find() -> dict[str, Any] | None:
            events = [json.loads(line) for line in self.lines if line.startswith("{")]
            return next((event for event in events if event["event"] == name), None)

        with self._more:
            assert self._more.wait_for(lambda: find() is not None, _WAIT_SECONDS), (name, self.lines)
            found = find()
            assert found is not None
            return found

    def end(self, number: int | None = None) -> int:
        """Sends a signal, if one is given, and returns the exit status."""
        if number is not None:
            self.process.send_signal(number)
        status = self.process.wait(_WAIT_SECONDS)
        self._reader.join(_WAIT_SECONDS)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


@contextmanager
def running(module: str, *flags: str, environment: Mapping[str, str] | None = None) -> Iterator[Process]:
    process = Process(module, *flags, environment=environment)
    try:
        yield process
    finally:
        process.end(signal.SIGKILL if process.process.poll() is None else None)
