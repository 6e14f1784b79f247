"""The running sequences as columns, one entry a row of the executor's batch.

Steady decode touches these arrays as a whole and no sequence object, which is what keeps a step at a fraction of a
microsecond a sequence. Three counters tell where a row stands, all in tokens of its sequence:

    num_known      confirmed: prompt, and output that a result told of
    num_planned    positions whose computation is planned: their KV is there, or on its way
    prefill_end    known tokens when the row started; beyond them each planned position samples one token

A row prefills while num_planned < prefill_end. After that, tokens num_known .. num_planned are in flight.
"""

import numpy as np
from numpy.typing import NDArray

from scheduler_svc.core.masks import RowMask
from scheduler_svc.core.request import ONE, Int32Array, Int64Array
from scheduler_svc.core.sequence import Sequence

_MIN_END_TOKENS = 4
_NOWHERE: NDArray[np.intp] = np.empty(0, np.intp)


class RowTable:
    """Columns of `max_num_seqs` rows. A clear row has incarnation 0."""

    def __init__(self, max_num_seqs: int, max_model_len: int, block_size: int, vocab_size: int) -> None:
        self._block_size = block_size
        self._last_block = np.arange(-block_size, 0)
        self.version = 0
        """Changes whenever a sequence takes a row or leaves it, or begins to pad."""
        self.incarnation: Int64Array = np.zeros(max_num_seqs, np.int64)
        self.sequence_id: Int64Array = np.zeros(max_num_seqs, np.int64)
        self.num_known: Int64Array = np.zeros(max_num_seqs, np.int64)
        self.num_planned: Int64Array = np.zeros(max_num_seqs, np.int64)
        self.prefill_end: Int64Array = np.zeros(max_num_seqs, np.int64)
        self.max_len: Int64Array = np.zeros(max_num_seqs, np.int64)
        self.capacity: Int64Array = np.zeros(max_num_seqs, np.int64)
        """Token slots of the row's blocks."""
        self.last_step: Int64Array = np.zeros(max_num_seqs, np.int64)
        self.is_padding: NDArray[np.bool_] = np.zeros(max_num_seqs, np.bool_)
        """Rows that decode on after their sequence ended."""
        self.num_guided = 0
        """Rows that sample by masks, which the columns below are about."""
        self.is_guided: NDArray[np.bool_] = np.zeros(max_num_seqs, np.bool_)
        self.has_mask: NDArray[np.bool_] = np.zeros(max_num_seqs, np.bool_)
        """Guided rows that have the mask of the token behind their confirmed ones."""
        self.end_token_ids: Int32Array = np.full((max_num_seqs, _MIN_END_TOKENS), -1, np.int32)
        # By token id, how many rows it would end: in most steps that says at once that none of them ends.
        self._num_ended_by: Int32Array = np.zeros(vocab_size, np.int32)
        # Left unwritten: the pages of a row become real memory as its sequence grows.
        self.token_ids: Int32Array = np.empty((max_num_seqs, max_model_len), np.int32)
        self._flat_token_ids: Int32Array = self.token_ids.reshape(-1)
        self.sequences: list[Sequence | None] = [None] * max_num_seqs
        self.ones: Int32Array = np.ones(max_num_seqs, np.int32)
        self.ones.flags.writeable = False
        """One decode step a row, as every usual plan has it; not to be written to."""
        self._free = list(range(max_num_seqs))[::-1]

    @property
    def num_free(self) -> int:
        """Rows without a sequence."""
        return len(self._free)

    def start(self, sequence: Sequence, incarnation: int, num_computed_tokens: int) -> int:
        """Gives the sequence a row; returns it. There is a free one."""
        self.version += 1
        row = self._free.pop()
        num_known = len(sequence.token_ids)
        sequence.row, sequence.incarnation = row, incarnation
        self.sequences[row] = sequence
        self.incarnation[row] = incarnation
        self.sequence_id[row] = sequence.sequence_id
        self.num_known[row] = self.prefill_end[row] = num_known
        self.num_planned[row] = num_computed_tokens
        self.max_len[row] = sequence.max_len
        self.capacity[row] = len(sequence.block_table) * self._block_size
        self.token_ids[row, :num_known] = sequence.token_ids
        self._set_end_tokens(row, sequence.request.end_token_ids)
        if sequence.request.guide is not None:
            self.num_guided += 1
            self.is_guided[row], self.has_mask[row] = True, sequence.mask is not None
        return row

    def clear(self, sequence: Sequence) -> None:
        """Takes the sequence off its row; its confirmed tokens and last step go back into it."""
        self.version += 1
        row = sequence.row
        sequence.token_ids = self.token_ids[row, : self.num_known[row]].copy()
        sequence.last_step = int(self.last_step[row])
        sequence.row = -1
        self.sequences[row] = None
        self.is_padding[row] = False
        self._unguide(row)
        self._count_end_tokens(sequence.request.end_token_ids, -1)
        self.incarnation[row] = self.num_planned[row] = self.prefill_end[row] = self.max_len[row] = 0
        self._free.append(row)

    def running(self) -> list[Sequence]:
        """All sequences that hold a row, by row."""
        return [sequence for sequence in self.sequences if sequence is not None]

    def pad(self, sequence: Sequence, max_len: int) -> None:
        """Makes the row of a sequence that has ended decode on, to at most `max_len` tokens."""
        self.version += 1
        self.is_padding[sequence.row] = True
        self.max_len[sequence.row] = max_len
        self._unguide(sequence.row)

    def num_unused_slots(self) -> int:
        """Slots of the rows' blocks beyond what is computed or planned."""
        on_rows = self.incarnation != 0
        return int((self.capacity[on_rows] - self.num_planned[on_rows]).sum())

    def at(self, row: int) -> Sequence:
        """The sequence that holds a row. It is not clear."""
        sequence = self.sequences[row]
        assert sequence is not None
        return sequence

    def prefilling(self) -> NDArray[np.intp]:
        """Rows with known tokens whose computation is not planned."""
        # A clear row has both counters 0.
        return (self.num_planned < self.prefill_end).nonzero()[0]

    def token_bytes(self, row: int, num_tokens: int) -> memoryview:
        """The first tokens of a row as little-endian int32, not copied."""
        return self.token_ids[row, :num_tokens].data.cast("B")

    def decodable(self) -> NDArray[np.intp]:
        """Rows past their prefill that are not certain to end with the tokens in flight, and know what is allowed."""
        planned = self.num_planned
        # A clear row has max_len 0, and so is in neither set.
        decodable = (planned >= self.prefill_end) & (planned + 1 < self.max_len)
        if self.num_guided:
            # A guided row has one plan in flight, and the next one needs the mask that its result brings.
            decodable &= ~self.is_guided | (self.has_mask & (planned < self.num_known))
        return decodable.nonzero()[0]

    def num_at_capacity(self) -> int:
        """How many rows have no slot left; at most so many need blocks for one more token each."""
        return int(np.count_nonzero((self.num_planned >= self.capacity) & (self.incarnation != 0)))

    def confirm(self, rows: NDArray[np.intp], token_ids: Int32Array) -> Int64Array:
        """Appends one confirmed token to each row; returns how many tokens each has now."""
        num_known = self.num_known[rows]
        self.token_ids[rows, num_known] = token_ids
        num_known += 1
        self.num_known[rows] = num_known
        if self.num_guided:
            for row in rows[self.is_guided[rows]].tolist():
                self.at(row).mask = None
                self.has_mask[row] = False
        return num_known

    def set_mask(self, row: int) -> None:
        """The sequence of a guided row has got its mask."""
        self.has_mask[row] = True

    def masks(self, rows: list[int]) -> list[RowMask]:
        """The masks of those of `rows` that are guided; each has its mask."""
        masks = []
        for row in rows:
            mask = self.at(row).mask
            if self.is_guided[row]:
                assert mask is not None
                masks.append(RowMask(row, mask))
        return masks

    def token_starts(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Where the tokens of each row begin; see `append`."""
        starts: NDArray[np.intp] = rows * self.token_ids.shape[1]
        return starts

    def append(
        self,
        rows: NDArray[np.intp],
        token_starts: NDArray[np.intp],
        num_known: Int64Array,
        token_ids: Int32Array,
    ) -> None:
        """Like `confirm`, for rows of which it is known where their tokens are and how many there are."""
        self._flat_token_ids[token_starts + num_known] = token_ids
        self.num_known[rows] = num_known + ONE

    def ended(self, rows: NDArray[np.intp], token_ids: Int32Array) -> NDArray[np.intp]:
        """Where among `rows` the token of `token_ids` ends the row's sequence."""
        if not np.count_nonzero(self._num_ended_by.take(token_ids)):
            return _NOWHERE
        ends: NDArray[np.bool_] = (self.end_token_ids[rows] == token_ids[:, None]).any(axis=1)
        return ends.nonzero()[0]

    def block_tokens(self, rows: NDArray[np.intp], num_tokens: Int64Array) -> bytes:
        """The last block's worth of each row's first `num_tokens`, as little-endian int32, row by row."""
        ends = self.token_starts(rows) + num_tokens
        return self._flat_token_ids.take(ends[:, None] + self._last_block).tobytes()

    def _unguide(self, row: int) -> None:
        self.num_guided -= int(self.is_guided[row])
        self.is_guided[row] = self.has_mask[row] = False

    def _count_end_tokens(self, end_token_ids: tuple[int, ...], change: int) -> None:
        for token_id in end_token_ids:
            if 0 <= token_id < len(self._num_ended_by):  # no other is ever sampled
                self._num_ended_by[token_id] += change

    def _set_end_tokens(self, row: int, end_token_ids: tuple[int, ...]) -> None:
        count, width = len(end_token_ids), self.end_token_ids.shape[1]
        if count > width:
            more = np.full((len(self.sequences), count - width), -1, np.int32)
            self.end_token_ids = np.concatenate([self.end_token_ids, more], axis=1)
        self.end_token_ids[row] = -1
        self.end_token_ids[row, :count] = end_token_ids
        self._count_end_tokens(end_token_ids, 1)
