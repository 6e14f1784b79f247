"""How a rank ends when another is lost, or it is itself: at once, whatever its threads wait for."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import structlog

_ending = threading.Lock()
# For whoever logs first to have ended the process.
_LOGGING_SECONDS = 1.0


def end_process(event: str, **fields: Any) -> NoReturn:
    """Logs why, once, and ends this process with status 1. Others see their sockets to it close, and end too."""
    if _ending.acquire(timeout=_LOGGING_SECONDS):
        structlog.get_logger(__name__).error(event, **fields)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(1)


@contextlib.contextmanager
def exit_on_signal() -> Iterator[None]:
    """Within it a signal with a handler ends the process with status 0, also while the main thread waits in C++."""
    receiving, sending = socket.socketpair()
    sending.setblocking(False)
    former = signal.set_wakeup_fd(sending.fileno())

    def obey() -> None:
        if receiving.recv(1):
            os._exit(0)

    watcher = threading.Thread(target=obey, name="start-signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        sending.close()
        watcher.join()
        receiving.close()
