"""The clock that the virtual device runs by: the real one, or one that jumps to where it is waited for."""

import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock in nanoseconds."""

    def now_ns(self) -> int:
        """The time."""

    def sleep_until_ns(self, deadline_ns: int) -> None:
        """Returns when the time is `deadline_ns` or later."""


# How late a sleeping thread may wake on a busy machine.
_LATE_NS = 100_000


class RealClock:
    """Real time."""

    def now_ns(self) -> int:
        """The time of the monotonic clock."""
        return time.monotonic_ns()

    def sleep_until_ns(self, deadline_ns: int) -> None:
        """Sleeps, and stays awake for the last moment: a device's event is seen within microseconds of it.

        Waking late does not add up: a step's end follows from the end before it, not from the waking.
        """
        delay_ns = deadline_ns - time.monotonic_ns()
        if delay_ns > _LATE_NS:
            time.sleep((delay_ns - _LATE_NS) / 1e9)
        while time.monotonic_ns() < deadline_ns:
            time.sleep(0)


class InstantClock:
    """Time that passes only where it is waited for, or advanced."""

    def __init__(self) -> None:
        self._now_ns = 0

    def now_ns(self) -> int:
        """The time."""
        return self._now_ns

    def sleep_until_ns(self, deadline_ns: int) -> None:
        """Makes it `deadline_ns`, at once."""
        self._now_ns = max(self._now_ns, deadline_ns)

    def advance_ns(self, duration_ns: int) -> None:
        """Lets time pass."""
        self._now_ns += duration_ns
