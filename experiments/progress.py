"""A progress bar on stderr: one line that changes on a terminal, else a line a case."""

import sys
import time
from typing import TextIO

_WIDTH = 24


class Progress:
    """Counts cases. What is left is estimated from those that were measured, not from those that were done before."""

    def __init__(self, num_cases: int, num_done: int, stream: TextIO = sys.stderr) -> None:
        self._num_cases = num_cases
        self._num_done = self._num_before = num_done
        self._stream = stream
        self._begun = time.monotonic()

    def show(self, case: str) -> None:
        """Says what is being measured now."""
        seconds = time.monotonic() - self._begun
        line = f"{self._bar()} {self._clock(seconds)}{self._left(seconds)}  {case}"
        end = "" if self._stream.isatty() else "\n"
        self._stream.write(f"{self._begin()}{line}{end}")
        self._stream.flush()

    def done(self) -> None:
        """One more case is measured, or has failed."""
        self._num_done += 1

    def tell(self, line: str) -> None:
        """A line of its own, which stays."""
        self._stream.write(f"{self._begin()}{line}\n")
        self._stream.flush()

    def _begin(self) -> str:
        return "\r\x1b[K" if self._stream.isatty() else ""

    def _bar(self) -> str:
        filled = _WIDTH * self._num_done // max(1, self._num_cases)
        return f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {self._num_done}/{self._num_cases}"

    def _left(self, seconds: float) -> str:
        measured = self._num_done - self._num_before
        if not measured:
            return ""
        return f", about {self._clock(seconds / measured * (self._num_cases - self._num_done))} left"

    @staticmethod
    def _clock(seconds: float) -> str:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
