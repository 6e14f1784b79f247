"""Locks with a deadline."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held(lock: threading.Lock, deadline: float) -> Iterator[None]:
    """Holds a lock; TimeoutError where it cannot be had by `deadline`, seconds of the monotonic clock."""
    remaining = deadline - time.monotonic()
    if remaining <= 0 or not lock.acquire(timeout=remaining):
        raise TimeoutError("the steps under way do not end")
    try:
        yield
    finally:
        lock.release()
