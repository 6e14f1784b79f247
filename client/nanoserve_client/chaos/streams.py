"""One stream of a run, as its client sees it."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from nanoserve_client.async_client import AsyncClient, AsyncStream
from nanoserve_client.chaos.cases import Case
from nanoserve_client.errors import ApiError, NanoserveError, Unavailable
from nanoserve_client.results import Completion, Delta, TokenLogprob

_RETRY_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Boundary:
    """Where an output stood after a message: how many tokens it had, and its text."""

    index: int
    num_tokens: int
    text: str


@dataclass(slots=True)
class Seen:
    """What a client saw of one request."""

    completion: Completion | None = None
    error: NanoserveError | None = None
    has_left: bool = False
    """Whether it was the client that ended it."""
    boundaries: list[Boundary] = field(default_factory=list)
    token_ids: dict[int, list[int]] = field(default_factory=dict)
    """By output."""
    texts: dict[int, str] = field(default_factory=dict)
    logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    num_retries: int = 0
    """Calls that failed before the first event, and were made again."""
    first_seconds: float = 0.0
    """From the beginning to the first event."""
    seconds: float = 0.0
    longest_pause_seconds: float = 0.0
    """Between two events."""


class ChaosStream:
    """Plays one case; `leave` ends it from the client's side."""

    def __init__(self, client: AsyncClient, case: Case, note_tokens: Callable[[int], None]) -> None:
        """`note_tokens` is told of how many tokens come."""
        self.case = case
        self.seen = Seen()
        self._client = client
        self._note_tokens = note_tokens
        self._stream: AsyncStream | None = None

    def leave(self) -> None:
        """The client goes."""
        self.seen.has_left = True
        if self._stream is not None:
            self._stream.close()

    async def play(self, deadline_seconds: float) -> Seen:
        """Reads the stream to its end; TimeoutError where that does not come in time."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(deadline_seconds):
                while not self.seen.has_left and await self._try_once(began):
                    self.seen.num_retries += 1
                    await asyncio.sleep(_RETRY_SECONDS)
        finally:
            self.seen.seconds = time.monotonic() - began
        return self.seen

    async def _try_once(self, began: float) -> bool:
        """Makes the call and reads it; whether it failed before its first event, by no fault of the request."""
        seen = self.seen
        self._stream = stream = self._client.stream(self.case.prompt, options=self.case.options)
        last = began
        try:
            async for event in stream:
                now = time.monotonic()
                if not seen.first_seconds:
                    seen.first_seconds = now - began
                else:
                    seen.longest_pause_seconds = max(seen.longest_pause_seconds, now - last)
                last = now
                if isinstance(event, Delta):
                    self._add(event)
            if not seen.has_left:
                seen.completion = await stream.result()
        except Unavailable as error:
            if not seen.first_seconds:
                return True
            seen.error = error
        except NanoserveError as error:
            seen.error = error
        return False

    def _add(self, delta: Delta) -> None:
        seen, index = self.seen, delta.index
        ids = seen.token_ids.setdefault(index, [])
        ids += delta.token_ids
        seen.logprobs.setdefault(index, []).extend(delta.logprobs)
        seen.texts[index] = seen.texts.get(index, "") + delta.text
        seen.boundaries.append(Boundary(index, len(ids), seen.texts[index]))
        self._note_tokens(len(delta.token_ids))


def is_refusal(error: NanoserveError | None) -> bool:
    """Whether a request was turned away for now, with a time to come back."""
    return (
        isinstance(error, ApiError)
        and error.code.name == "RESOURCE_EXHAUSTED"
        and error.retry_after_seconds is not None
    )
