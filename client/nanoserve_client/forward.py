"""Passes on the log lines of supervised processes: `service | line` on a terminal, one JSON object a line otherwise."""

import json
import threading
from datetime import UTC, datetime
from typing import Any, TextIO

from nanoserve_client.child import log_entry
from nanoserve_client.service import Log

LOG_LEVELS = ("debug", "info", "warning", "error")
"""From the least severe."""
_STANDARD_KEYS = ("timestamp", "level", "event", "service")


def at_least(level: str, log: Log) -> Log:
    """`log` without the structured lines that are less severe than `level`; others may be all there is of an error."""
    dropped = LOG_LEVELS[: LOG_LEVELS.index(level)]

    def pass_on(service: str, line: str) -> None:
        entry = log_entry(line)
        if entry is None or entry.get("level") not in dropped:
            log(service, line)

    return pass_on


class LogForwarder:
    """Writes (service, line) to a stream; threads may share it.

    Until `started`, the latest unstructured line of each service is held back: where the service fails to start, that
    line is the error, which is then told once, by the one who reports it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._pretty = stream.isatty()
        self._lock = threading.Lock()
        self._starting = True
        self._held: dict[str, str] = {}

    def __call__(self, service: str, line: str) -> None:
        """Passes a line on."""
        with self._lock:
            if service in self._held:
                self._write(service, self._held.pop(service))
            if self._starting and service != "supervisor" and log_entry(line) is None:
                self._held[service] = line
            else:
                self._write(service, line)

    def started(self) -> None:
        """Nothing is held back any more."""
        with self._lock:
            self._starting = False
            for service, line in self._held.items():
                self._write(service, line)
            self._held.clear()

    def _write(self, service: str, line: str) -> None:
        entry = log_entry(line) or {
            "event": line,
            "level": "info",
            "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        }
        text = _pretty(service, entry) if self._pretty else json.dumps({**entry, "service": service})
        print(text, file=self._stream, flush=True)


def _pretty(service: str, entry: dict[str, Any]) -> str:
    level = entry.get("level", "info")
    fields = [f"{key}={value}" for key, value in entry.items() if key not in _STANDARD_KEYS]
    words = [*([] if level == "info" else [f"{level}:"]), str(entry["event"]), *fields]
    return f"{service:<10} | {' '.join(words)}"
