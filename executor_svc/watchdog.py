"""The executor's parent: passes signals on, and ends the executor when a step of its hangs, or it does itself.

Supervisors restart what has ended, and see no difference between a process that hangs and one that works. Imports
little: it does nothing nearly all of the time.
"""

import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Sequence

from executor_svc.progress import PROGRESS_VARIABLE, Page, Reading, make_file
from nanoserve.parent import child_environment
from nanoserve.step_limits import TICK_SECONDS, StepClock

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Its main thread beats four times a second; what holds it up for so long will not let it go.
_SILENCE_SECONDS = 60.0
_KILL_SECONDS = 10.0


def watch(command: Sequence[str]) -> int:
    """Runs the executor's process and returns its exit status: 128 + N for signal N, 1 where it had to be ended."""
    waking, woken = socket.socketpair()
    for end in (waking, woken):
        end.setblocking(False)
    signal.set_wakeup_fd(woken.fileno())
    for handled in (*_FORWARDED, signal.SIGCHLD):
        signal.signal(handled, lambda *_: None)
    file = make_file()
    environment = child_environment(os.environ) | {PROGRESS_VARIABLE: str(file)}
    process = subprocess.Popen(command, env=environment, pass_fds=(file,))
    judge, before = Judge(), time.monotonic()
    page = Page(file)
    while process.poll() is None:
        if select.select([waking], [], [], TICK_SECONDS)[0]:
            for number in set(waking.recv(256)) & set(_FORWARDED):
                process.send_signal(number)
        before, elapsed = time.monotonic(), time.monotonic() - before
        reason = judge.tick(page.read(), elapsed)
        if reason is not None:
            _kill(process, reason)
            return 1
    status = process.returncode
    return status if status >= 0 else 128 - status


class Judge:
    """Says from readings, one a tick, when the executor hangs. A process that is not scheduled itself judges nobody."""

    def __init__(self) -> None:
        self._step, self._beat = StepClock(), StepClock()

    def tick(self, reading: Reading, elapsed_seconds: float) -> str | None:
        """Why the executor is to be ended; None while it works."""
        is_under_way = reading.num_launched > reading.num_finished
        seconds = self._step.tick(reading.num_finished if is_under_way else None, elapsed_seconds)
        if is_under_way and seconds >= reading.limit_seconds:
            return f"a step has not finished within {reading.limit_seconds:.0f} s"
        if self._beat.tick(reading.num_beats or None, elapsed_seconds) >= _SILENCE_SECONDS:
            return f"no sign of life for {_SILENCE_SECONDS:.0f} s"
        return None


def _kill(process: "subprocess.Popen[bytes]", reason: str) -> None:
    process.kill()
    import structlog

    from nanoserve.logs import configure_logs

    configure_logs("executor", "info")
    structlog.get_logger().error("hung", reason=reason, pid=process.pid)
    try:
        process.wait(_KILL_SECONDS)
    except subprocess.TimeoutExpired:  # it waits within the kernel; what starts next finds its device taken
        structlog.get_logger().error("not ended", pid=process.pid)
