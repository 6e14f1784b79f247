"""The waiting queue: higher priority first, then first come, first served.

A preempted sequence arrived before every sequence of its class that still waits, so its place is the head of its
class without further ado.
"""

import heapq
from collections.abc import Callable

from scheduler_svc.core.sequence import Sequence


class WaitingQueue:
    """A heap of sequences by (priority, arrival), with removal by marking; and, aside, those that are held."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Sequence]] = []
        self._members: set[int] = set()
        self._is_held: Callable[[int], bool] | None = None
        self._aside: dict[int, Sequence] = {}

    def __len__(self) -> int:
        return len(self._members) + len(self._aside)

    def push(self, sequence: Sequence) -> None:
        """Adds a sequence that is not in the queue."""
        if self._is_held is not None and self._is_held(sequence.sequence_id):
            self._aside[sequence.sequence_id] = sequence
            return
        self._members.add(sequence.sequence_id)
        heapq.heappush(self._heap, (*sequence.rank, sequence))

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it stands."""
        self._members.discard(sequence.sequence_id)
        self._aside.pop(sequence.sequence_id, None)

    def hold(self, is_held: Callable[[int], bool] | None) -> None:
        """From now on those that `is_held` says, by their ids, are never the head; None: nobody."""
        waiting = [entry[2] for entry in self._heap if entry[1] in self._members]
        waiting += self._aside.values()
        self._heap, self._members, self._aside, self._is_held = [], set(), {}, is_held
        for sequence in waiting:
            self.push(sequence)

    def head(self) -> Sequence | None:
        """The sequence to be started next, left in the queue."""
        while self._heap:
            if self._heap[0][1] in self._members:
                return self._heap[0][2]
            heapq.heappop(self._heap)
        return None

    def pop(self) -> Sequence:
        """Takes the head out. The queue is not empty."""
        sequence = self.head()
        assert sequence is not None
        heapq.heappop(self._heap)
        self._members.remove(sequence.sequence_id)
        return sequence
