"""Splits what a turn of the engine made known among the API workers whose requests it concerns."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from scheduler_svc.core.request import Int64Array
from scheduler_svc.messages import Ended, Failed, PromptLogprobs, Started, StepBatch, TokenBatch

# The engine's key of a request is the number of its worker's connection and, below, the worker's own key.
_KEY_BITS = 40
MAX_WORKER_KEY = (1 << _KEY_BITS) - 1


def engine_key(number: int, key: int) -> int:
    """The engine's key of what a worker, known by the number of its connection, calls `key`."""
    return (number << _KEY_BITS) + key


def worker_number(key: int) -> int:
    """The number of the connection that an engine's key came by."""
    return key >> _KEY_BITS


def worker_key(key: int) -> int:
    """What the worker itself calls it."""
    return key & MAX_WORKER_KEY


@dataclass(slots=True)
class _Part:
    """One worker's part of a step."""

    started: list[Started] = field(default_factory=list)
    columns: Int64Array | None = None
    """Where in the step's tokens its own are."""
    prompts: list[tuple[int, PromptLogprobs]] = field(default_factory=list)
    ended: list[Ended | Failed] = field(default_factory=list)


class StepSplitter:
    """Knows which worker each live sequence belongs to."""

    def __init__(self) -> None:
        self._owners: dict[int, int] = {}
        """Number of the worker's connection, by sequence id."""
        # Steady decode splits the same column of sequences again and again.
        self._last_ids: Int64Array | None = None
        self._last_split: dict[int, Int64Array] = {}

    def add(self, sequence_ids: Iterable[int], number: int) -> None:
        """Notes whose sequences these are."""
        self._owners |= dict.fromkeys(sequence_ids, number)
        self._last_ids = None

    def remove(self, sequence_ids: Iterable[int]) -> None:
        """Forgets sequences."""
        for sequence_id in sequence_ids:
            del self._owners[sequence_id]
        self._last_ids = None

    def split(self, batch: StepBatch) -> dict[int, StepBatch]:
        """Each worker's part; what belongs to nobody is dropped."""
        parts: dict[int, _Part] = {}
        for started in batch.started:
            parts.setdefault(worker_number(started.key), _Part()).started.append(started)
        if batch.tokens is not None:
            for number, columns in self._columns(batch.tokens.sequence_ids).items():
                parts.setdefault(number, _Part()).columns = columns
            for sequence_id, piece in batch.tokens.prompt_logprobs:
                if (owner := self._owners.get(sequence_id)) is not None:
                    parts.setdefault(owner, _Part()).prompts.append((sequence_id, piece))
        for end in batch.ended:
            parts.setdefault(worker_number(end.key), _Part()).ended.append(end)
        return {
            number: StepBatch(batch.time, tuple(part.started), _select(batch.tokens, part), tuple(part.ended))
            for number, part in parts.items()
        }

    def _columns(self, sequence_ids: Int64Array) -> dict[int, Int64Array]:
        """Where in the column each worker's sequences are."""
        if self._last_ids is None or not np.array_equal(self._last_ids, sequence_ids):
            owners = np.array([self._owners.get(ident, 0) for ident in sequence_ids.tolist()], np.int64)
            numbers = np.unique(owners).tolist()
            self._last_split = {number: np.flatnonzero(owners == number) for number in numbers if number}
            self._last_ids = sequence_ids
        return self._last_split


def _select(tokens: TokenBatch | None, part: _Part) -> TokenBatch | None:
    """A worker's part of the tokens."""
    if tokens is None or (part.columns is None and not part.prompts):
        return None
    columns = np.empty(0, np.int64) if part.columns is None else part.columns
    logprobs = {}
    if tokens.logprobs:
        entries = enumerate(columns.tolist())
        logprobs = {i: tokens.logprobs[column] for i, column in entries if column in tokens.logprobs}
    return TokenBatch(
        tokens.sequence_ids[columns],
        tokens.token_ids[columns],
        tokens.finishes[columns],
        logprobs,
        tuple(part.prompts),
    )
