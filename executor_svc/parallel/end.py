"""How a rank ends when another is lost, or it is itself: at once, whatever its threads wait for."""

import os
import sys
import threading
from typing import Any, NoReturn

import structlog

_ending = threading.Lock()


def end_process(event: str, **fields: Any) -> NoReturn:
    """Logs why, once, and ends this process with status 1. Others see their sockets to it close, and end too."""
    if _ending.acquire(blocking=False):
        structlog.get_logger(__name__).error(event, **fields)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(1)
