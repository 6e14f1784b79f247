"""Steady decode: the same rows, step after step, as long as nothing starts, ends or is preempted.

There is no steady batch while a row is guided, as such rows come and go with their masks.
What the plans of such steps share is looked up once, and so is which rows fill a block in which of them.
"""

import numpy as np
from numpy.typing import NDArray

from scheduler_svc.core.request import Int32Array, Int64Array
from scheduler_svc.core.rows import RowTable


class SteadyBatch:
    """Rows that decode together, one token a step. Columns `[num_rows]`, not to be written to.

    Holds while the row table has the version that it had, and while `num_steps_left` is not 0.
    """

    def __init__(self, table: RowTable, rows: NDArray[np.intp], ends: Int64Array, block_size: int) -> None:
        """`rows` are all that can decode; each is planned up to `ends`, and none prefills."""
        self.version = table.version
        self.rows = rows
        self.wire_rows: Int32Array = rows.astype(np.int32)
        self.packed_rows = rows.astype("<i4").tobytes()
        self.steps = table.ones[: len(rows)]
        self.incarnations = table.incarnation[rows]
        self.sequence_ids = table.sequence_id[rows]
        self.indices: NDArray[np.intp] = np.arange(len(rows))
        self.no_finishes: NDArray[np.int8] = np.zeros(len(rows), np.int8)
        self.token_starts = table.token_starts(rows)
        for column in (self.sequence_ids, self.indices, self.no_finishes):
            column.flags.writeable = False  # every step's outputs have them
        self.ends = ends
        """Positions planned of each row."""
        self.num_steps_left = int((table.max_len[rows] - 1 - ends).min())
        """Steps until a row reaches the last position that is ever planned for it."""
        self._block_size = block_size
        self._filled: list[NDArray[np.intp] | None] = [None] * block_size

    def advance(self, ends: Int64Array) -> None:
        """Notes that the next step is planned: `ends` are one more than before."""
        self.ends = ends
        self.num_steps_left -= 1

    def filled(self) -> NDArray[np.intp]:
        """Which rows, by their place, have filled a block at `ends`: the same again every block_size steps."""
        phase = self.num_steps_left % self._block_size
        found = self._filled[phase]
        if found is None:
            found = self._filled[phase] = (self.ends % self._block_size == 0).nonzero()[0]
        return found
