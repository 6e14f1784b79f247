"""Whether a worker's loop still turns: it is pinged each second, and any frame of it is an answer.

A worker that is stopped or stuck keeps its socket open and, with few streams, never has much unread: only its silence
tells. Pings are counted rather than seconds: where the engine's own process was held up no ping went out, and the
answers that lie unread after that are read before the next is counted.
"""

import asyncio
from collections.abc import Callable

PING_SECONDS = 1.0
# A worker's loop hands long work to threads, so a healthy one answers in milliseconds. What it may need longer for is a
# machine with too few cores; ten seconds is also what unread output is given.
MAX_UNANSWERED = 10
# Until its first frame: it imports, and loads the tokenizer, before its loop turns.
MAX_UNANSWERED_AT_START = 120


class Heartbeat:
    """Of one worker."""

    def __init__(self, ping: Callable[[], None], ping_seconds: float = PING_SECONDS) -> None:
        """`ping` asks the worker for a frame."""
        self._ping, self._ping_seconds = ping, ping_seconds
        self._num_unanswered, self._limit = 0, MAX_UNANSWERED_AT_START

    def heard(self) -> None:
        """A frame has come."""
        self._num_unanswered, self._limit = 0, MAX_UNANSWERED

    async def silence(self) -> str:
        """Pings until too many have no answer; returns what is wrong then."""
        while self._num_unanswered < self._limit:
            self._num_unanswered += 1
            self._ping()
            await asyncio.sleep(self._ping_seconds)
        return f"no answer to {self._limit} pings"
