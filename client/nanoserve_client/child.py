"""One supervised process: its start, its log, its end."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

_GUARD = Path(__file__).with_name("guarded_exec.py")


class Child:
    """A process in a group of its own that ends, by SIGKILL, with the thread that made it (on Linux).

    `log` gets each line that it prints, of stdout or stderr, in a thread of this class. `changed` is called when it
    listens and when it has ended.
    """

    def __init__(
        self, command: Sequence[str], log: Callable[[str], None], changed: Callable[[], None]
    ) -> None:
        self._log = log
        self._changed = changed
        self._signalling = threading.Lock()
        self._reaped = False
        self._last_plain_line = ""
        self.listening: str | None = None
        """The address in its `listening` log line, once that has come."""
        self._listening_pid: int | None = None
        self.exited = threading.Event()
        # A group of its own: a terminal's Ctrl-C reaches the supervisor alone, which ends children in order.
        self._process = subprocess.Popen(
            guarded(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        assert self._process.stdout is not None  # as asked
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        threading.Thread(target=self._await_end, daemon=True).start()

    @property
    def pid(self) -> int:
        """Process id; that of the group too."""
        return self._process.pid

    @property
    def serving_pid(self) -> int:
        """Process id of who listens: that of the process itself, or of a child of its that its log line names."""
        return self._listening_pid or self.pid

    @property
    def exit_status(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.returncode if self.exited.is_set() else None

    @property
    def last_words(self) -> str:
        """The last line it printed that is no structured log line, such as an error at its start; or empty."""
        if self.exited.is_set():
            self._reader.join(timeout=1.0)  # the pipe may still hold it
        return self._last_plain_line

    def terminate(self) -> None:
        """Asks it to end (SIGTERM)."""
        self.send_signal(signal.SIGTERM)

    def send_signal(self, number: int) -> None:
        """Sends it a signal, unless it has ended."""
        with self._signalling:
            if not self._reaped:
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it and what it has started (SIGKILL to the group)."""
        with self._signalling:
            if not self._reaped:
                os.killpg(self.pid, signal.SIGKILL)

    def _await_end(self) -> None:
        # Until it is reaped its process id, and so its group's, goes to nobody else.
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._signalling:
            with suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)  # what it left behind
            self._process.wait()
            self._reaped = True
        self.exited.set()
        self._changed()

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for data in stream:
                self._take_line(data.decode(errors="replace").rstrip())

    def _take_line(self, line: str) -> None:
        entry = log_entry(line)
        if entry is None and line:
            self._last_plain_line = line
        if entry is not None and entry.get("event") == "listening" and self.listening is None:
            self.listening = str(entry.get("address"))
            self._listening_pid = entry.get("pid")
            self._changed()
        self._log(line)


def guarded(command: Sequence[str]) -> list[str]:
    """The command, run so that it ends with the thread that starts it, by SIGKILL (on Linux)."""
    return [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), *command]


def log_entry(line: str) -> dict[str, Any] | None:
    """The entry of a structured log line; None for another line."""
    if not line.startswith("{"):
        return None
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return None
    return entry if isinstance(entry, dict) and "event" in entry else None
