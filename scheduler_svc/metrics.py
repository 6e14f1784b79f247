"""What is counted for Prometheus as the commands and events of the engine pass by: the engine knows nothing of it.

metrics_server.py has the names, and the HTTP side.
"""

import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scheduler_svc import messages as msg
from scheduler_svc.core.request import Finish

_REASONS = {Finish.STOP: "stop", Finish.LENGTH: "length"}
_REQUEST_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0),
    *(40.0, 80.0, 160.0, 640.0, 2560.0),
)
_GAP_SECONDS = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)


class Histogram:
    """Counts of values up to each bound, and their sum; takes many values at once."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = np.array(bounds)
        self._counts: NDArray[np.int64] = np.zeros(len(bounds) + 1, np.int64)
        self.sum = 0.0

    def add(self, values: NDArray[np.float64]) -> None:
        """Counts values, in seconds."""
        places = self._bounds.searchsorted(values)
        self._counts += np.bincount(places, minlength=len(self._counts))
        self.sum += float(values.sum())

    def buckets(self) -> list[tuple[str, int]]:
        """Each bound as Prometheus writes it, and how many values are not above it."""
        bounds = [*map(repr, self._bounds.tolist()), "+Inf"]
        return list(zip(bounds, self._counts.cumsum().tolist(), strict=True))


@dataclass(slots=True)
class _Request:
    arrival: float
    num_prompt_tokens: int
    over: set[int]
    """Indices of outputs that ended before the request was resumed."""
    sequence_ids: tuple[int, ...] = ()
    has_tokens: bool = False
    is_given_up: bool = False
    """Whether the client has left before it was accepted."""
    unfinished: set[int] = field(default_factory=set)
    """Sequences that neither stopped nor came to their longest."""


@dataclass(slots=True)
class Metrics:
    """Counters since the start. `submit` and `publish` are called on the loop, in the order of what they see."""

    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    """Outputs by how they ended: stop, length, abort, error."""
    refused: Counter[str] = field(default_factory=Counter)
    """Requests by status code."""
    queue_seconds: Histogram = field(default_factory=lambda: Histogram(_REQUEST_SECONDS))
    first_token_seconds: Histogram = field(default_factory=lambda: Histogram(_REQUEST_SECONDS))
    gap_seconds: Histogram = field(default_factory=lambda: Histogram(_GAP_SECONDS))
    request_seconds: Histogram = field(default_factory=lambda: Histogram(_REQUEST_SECONDS))
    _requests: dict[int, _Request] = field(default_factory=dict)
    """By key."""
    _of_sequence: dict[int, _Request] = field(default_factory=dict)
    _last_token: dict[int, float] = field(default_factory=dict)
    """When each live sequence got its last token; NaN before the first."""

    def submit(self, command: msg.Command) -> None:
        """Takes in a command of the API, before the engine gets it."""
        match command:
            case msg.Submit():
                num_tokens = len(command.request.prompt_token_ids)
                over = {index for index, known in enumerate(command.request.resumed) if known is None}
                self._requests[command.key] = _Request(time.monotonic(), num_tokens, over)
            case msg.Abort() if (request := self._requests.get(command.key)) is not None:
                request.is_given_up = not request.sequence_ids
                # With indices it is for a stop string: that is how the API reports one.
                indices = command.indices if request.sequence_ids else None
                for index in indices or ():
                    self._finish(request, request.sequence_ids[index], "stop")

    def see(self, event: msg.Event) -> None:
        """Takes in an event of the engine."""
        match event:
            case msg.StepBatch():
                self._see_step(event)
            case msg.Accepted():
                self._accept(event)
            case msg.Refused():
                request = self._requests.pop(event.key, None)
                if request is not None and not request.is_given_up:
                    self.refused[event.problem.code.name] += 1

    def _accept(self, event: msg.Accepted) -> None:
        request = self._requests[event.key]
        request.sequence_ids = event.sequence_ids
        request.unfinished = {
            sequence_id for index, sequence_id in enumerate(event.sequence_ids) if index not in request.over
        }
        self.num_prompt_tokens += request.num_prompt_tokens
        for sequence_id in event.sequence_ids:
            self._of_sequence[sequence_id] = request
            self._last_token[sequence_id] = np.nan

    def _see_step(self, batch: msg.StepBatch) -> None:
        for started in batch.started:
            self.queue_seconds.add(np.array([batch.time - self._requests[started.key].arrival]))
        if batch.tokens is not None:
            self._see_tokens(batch.tokens, batch.time)
        for ended in batch.ended:
            self._end(ended, batch.time)

    def _see_tokens(self, tokens: msg.TokenBatch, now: float) -> None:
        is_good = tokens.finishes < Finish.FAILED
        ids, finishes = tokens.sequence_ids[is_good].tolist(), tokens.finishes[is_good]
        self.num_output_tokens += len(ids)
        gaps = now - np.fromiter(map(self._last_token.__getitem__, ids), np.float64, len(ids))
        self._last_token.update(dict.fromkeys(ids, now))
        is_first = np.isnan(gaps)
        if is_first.any():
            for index in is_first.nonzero()[0].tolist():
                self._see_first(self._of_sequence[ids[index]], now)
            gaps = gaps[~is_first]
        self.gap_seconds.add(gaps)
        for index in finishes.nonzero()[0].tolist():
            reason = _REASONS.get(Finish(finishes[index]))
            if reason is not None:
                self._finish(self._of_sequence[ids[index]], ids[index], reason)

    def _finish(self, request: _Request, sequence_id: int, reason: str) -> None:
        if sequence_id in request.unfinished:
            request.unfinished.discard(sequence_id)
            self.finished[reason] += 1

    def _see_first(self, request: _Request, now: float) -> None:
        if not request.has_tokens:
            request.has_tokens = True
            self.first_token_seconds.add(np.array([now - request.arrival]))

    def _end(self, ended: msg.Ended | msg.Failed, now: float) -> None:
        request = self._requests.pop(ended.key)
        for sequence_id in request.sequence_ids:
            del self._of_sequence[sequence_id], self._last_token[sequence_id]
        reason = "error" if isinstance(ended, msg.Failed) else "abort"
        for sequence_id in tuple(request.unfinished):
            self._finish(request, sequence_id, reason)
        self.request_seconds.add(np.array([now - request.arrival]))
