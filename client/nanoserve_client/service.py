"""One service under supervision: a process, and its successors when it ends."""

import time
from collections.abc import Callable, Sequence

from nanoserve_client.child import Child
from nanoserve_client.errors import ServerStartError
from nanoserve_client.health import is_serving

_FIRST_BACKOFF_SECONDS = 0.5
_LONGEST_BACKOFF_SECONDS = 30.0
_HEALTHY_SECONDS = 30.0

Log = Callable[[str, str], None]
"""Gets (service, line)."""


def backoff_seconds(num_failures: int) -> float:
    """How long to wait before a restart, after so many ends in a row that came soon after a start."""
    if num_failures == 0:
        return 0.0
    doublings = min(num_failures - 1, 16)  # enough for the limit, too few to overflow
    return min(_FIRST_BACKOFF_SECONDS * float(2**doublings), _LONGEST_BACKOFF_SECONDS)


class Service:
    """A process that is started again whenever it ends. Making it starts it."""

    def __init__(
        self, name: str, command: Sequence[str], log: Log, changed: Callable[[], None], *, asks_health: bool
    ) -> None:
        """A service without `asks_health` is taken to serve once it says that it listens, which it does by then."""
        self.name = name
        self._asks_health = asks_health
        self.command = list(command)
        """What the next process will run."""
        self._log = log
        self._changed = changed
        self._num_failures = 0
        self._restart_at: float | None = None
        self._start()

    def serving(self) -> bool:
        """Whether the first process serves; ServerStartError where it has ended."""
        if self.child.exited.is_set():
            status = self.child.exit_status
            ended = f"the {self.name} ended with status {status} before it served"
            raise ServerStartError(self.name, self.child.last_words or ended, status)
        address = self.child.listening
        return address is not None and (not self._asks_health or is_serving(address))

    def keep_running(self) -> float | None:
        """Restarts the process where it has ended and its time has come; returns seconds until then, if any."""
        now = time.monotonic()
        if self._restart_at is None:
            if not self.child.exited.is_set():
                return None
            lived = now - self._started_at
            self._num_failures = 0 if lived >= _HEALTHY_SECONDS else self._num_failures + 1
            pause = backoff_seconds(self._num_failures)
            self._restart_at = now + pause
            ended = f"{self.name} ended with status {self.child.exit_status} after {lived:.1f} s"
            self._log("supervisor", f"{ended}; starting it again in {pause:g} s")
        if now < self._restart_at:
            return self._restart_at - now
        self._start()
        return None

    def _start(self) -> None:
        self._restart_at = None
        self._started_at = time.monotonic()
        self.child = Child(self.command, lambda line: self._log(self.name, line), self._changed)
