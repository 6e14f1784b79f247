"""Whether a stream that broke goes on, when, and by which request: what both clients' streams ask. It makes no call.

A generation goes on by `resume`, from the tokens that have been received; one of which nothing was received is asked
for again. So a token comes once at most, whatever breaks.
"""

import random
import time
from numbers import Real

import grpc

from nanoserve.v1 import inference_pb2 as pb
from nanoserve_client.connection import Deadline
from nanoserve_client.errors import (
    AlreadyExists,
    ApiError,
    Cancelled,
    ConnectionFailed,
    InvalidRequest,
    ResourceExhausted,
    Unavailable,
    said_by_server,
)
from nanoserve_client.events import CompletionBuilder

DEFAULT_RESUME_TIMEOUT = 60.0
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0
# A server that stops cancels what has not been read to its end. What this side cancels is not asked about.
_BROKEN = (Unavailable, Cancelled)


def checked_resume_timeout(seconds: float) -> float:
    """`seconds`; InvalidRequest where it is no number from 0 on."""
    if not isinstance(seconds, Real) or not seconds >= 0:
        raise InvalidRequest(f"resume_timeout: {seconds!r} is no number of seconds from 0 on")
    return float(seconds)


class Resumption:
    """Of one stream."""

    def __init__(
        self, request: pb.GenerateRequest, builder: CompletionBuilder, timeout: float, deadline: Deadline
    ) -> None:
        """`timeout`: for how many seconds without an event to go on trying; 0: what fails is raised at once."""
        self._request, self._builder, self._timeout = request, builder, timeout
        self._deadline = deadline
        self._broken_at: float | None = None
        self._pause = _FIRST_PAUSE_SECONDS

    def request(self) -> pb.GenerateRequest:
        """What to ask for now."""
        return self._builder.resumed(self._request)

    def advanced(self) -> None:
        """An event came."""
        self._broken_at, self._pause = None, _FIRST_PAUSE_SECONDS

    def pause(self, failure: ApiError, cause: BaseException) -> float:
        """Seconds until the next call; raises the failure, which came by `cause`, where there is to be none.

        DeadlineExceeded where the deadline has passed. A server that wants more time than is left is not asked again.
        """
        if not self._may_pass(failure, cause):
            raise failure from cause
        now = time.monotonic()
        self._broken_at = now if self._broken_at is None else self._broken_at
        left = self._broken_at + self._timeout - now
        remaining, asked = self._deadline.remaining(), failure.retry_after_seconds or 0.0
        if left <= 0 or (remaining is not None and asked > remaining):
            raise failure from cause
        left = left if remaining is None else min(left, remaining)
        self._builder.reopen()
        # Not all at once, of the many whose streams broke together.
        pause = max(self._pause * random.uniform(0.5, 1.0), asked)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
        return min(pause, left)

    def _may_pass(self, failure: ApiError, cause: BaseException) -> bool:
        """Whether the same may succeed later."""
        if self._broken_at is None and not self._builder.has_started:
            # What the server refuses is refused, and nobody may listen where it was never seen.
            is_answer = isinstance(cause, grpc.RpcError) and said_by_server(cause)
            never_seen = is_answer or isinstance(failure, ConnectionFailed)
            return isinstance(failure, _BROKEN) and not never_seen
        if isinstance(failure, AlreadyExists | ResourceExhausted):
            # The server may not know yet that the broken stream is gone; its queue may be full.
            return self._broken_at is not None
        return isinstance(failure, _BROKEN)
