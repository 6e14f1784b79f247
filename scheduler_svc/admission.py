"""Whether a request is accepted now. What a request itself gets wrong is told elsewhere."""

from collections import deque

from scheduler_svc.messages import Code, Problem

_NUM_RECENT_STARTS = 32
_AWAY_RETRY_SECONDS = 1.0
_MIN_RETRY_SECONDS, _MAX_RETRY_SECONDS = 0.1, 30.0


class Admission:
    """The door: open while there is an executor, the server does not drain, and the queue has room."""

    def __init__(self, max_queue_size: int, max_queue_tokens: int | None = None) -> None:
        """The most requests that wait for their first step, and the most prompt tokens that they have together."""
        self._max_queue_size, self._max_queue_tokens = max_queue_size, max_queue_tokens
        self._recent_starts: deque[float] = deque(maxlen=_NUM_RECENT_STARTS)
        self.has_executor = False
        self.is_draining = False

    @property
    def is_open(self) -> bool:
        """Whether requests are accepted at all."""
        return self.has_executor and not self.is_draining

    def add_start(self, now: float) -> None:
        """Notes that a request was started."""
        self._recent_starts.append(now)

    def refusal(self, num_waiting: int, num_waiting_tokens: int, num_tokens: int) -> Problem | None:
        """Why a prompt of `num_tokens` is not accepted, with so many requests and tokens waiting; None where it is.

        A prompt longer than the queue's bound is accepted into an empty queue, or it never would be.
        """
        if self.is_draining:
            return Problem(Code.UNAVAILABLE, "the server is draining")
        if not self.has_executor:
            return Problem(Code.UNAVAILABLE, "there is no executor", retry_seconds=_AWAY_RETRY_SECONDS)
        limit = self._max_queue_tokens
        has_too_many_tokens = (
            limit is not None and num_waiting > 0 and num_waiting_tokens + num_tokens > limit
        )
        if num_waiting >= self._max_queue_size or has_too_many_tokens:
            description = f"{num_waiting} requests of {num_waiting_tokens} prompt tokens are waiting already"
            retry_seconds = self._retry_seconds(num_waiting)
            return Problem(Code.RESOURCE_EXHAUSTED, description, retry_seconds=retry_seconds)
        return None

    def _retry_seconds(self, num_waiting: int) -> float:
        """About how long it takes until half the queue has started, by the pace of the last starts."""
        starts = self._recent_starts
        interval = (starts[-1] - starts[0]) / (len(starts) - 1) if len(starts) > 1 else 0.0
        return min(max(interval * num_waiting / 2, _MIN_RETRY_SECONDS), _MAX_RETRY_SECONDS)
