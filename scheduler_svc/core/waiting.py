"""The waiting queue: higher priority first, then first come, first served.

A preempted sequence arrived before every sequence of its class that still waits, so its place is the head of its
class without further ado.
"""

import heapq

from scheduler_svc.core.sequence import Sequence


class WaitingQueue:
    """A heap of sequences by (priority, arrival), with removal by marking."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Sequence]] = []
        self._members: set[int] = set()

    def __len__(self) -> int:
        return len(self._members)

    def push(self, sequence: Sequence) -> None:
        """Adds a sequence that is not in the queue."""
        self._members.add(sequence.sequence_id)
        heapq.heappush(self._heap, (*sequence.rank, sequence))

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it stands."""
        self._members.discard(sequence.sequence_id)

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
