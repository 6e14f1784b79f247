"""The host's mirror of the device-resident batch, and by it the validation of every plan.

Lengths follow from the plans alone, so plan k+1 is checked while plan k runs. Two rows must never be able to write
one slot: a row owns the blocks of its table from its prefix hits on, and shares those before.
"""

import numpy as np
from numpy.typing import NDArray

from executor_svc.plan import Prefill, StartRow, Step, StepPlan
from executor_svc.plan_checks import (
    check_ids,
    check_once,
    check_start,
    first_true,
    invalid,
    max_blocks_per_row,
)
from executor_svc.runner import RunnerLimits
from nanoserve.arrays import Int32Array


class RowTable:
    """What every row holds once the plans so far have run. All rows are clear at first.

    Not for use after a plan was refused: it may be half applied, and the session that sent it is over.
    """

    def __init__(self, limits: RunnerLimits) -> None:
        self._limits = limits
        self._last_step_id = 0
        num_rows, self._max_blocks = limits.max_num_seqs, max_blocks_per_row(limits)
        self._live = np.zeros(num_rows, np.bool_)
        # Whether the row's known tokens are all computed, so that the device holds a sampled token for it.
        self._sampled = np.zeros(num_rows, np.bool_)
        self._num_known = np.zeros(num_rows, np.int32)
        # Positions computed or planned.
        self._length = np.zeros(num_rows, np.int32)
        self._num_blocks = np.zeros(num_rows, np.int32)
        # Positions that a decode step may compute: those of its blocks, but for the last of max_model_len, because the
        # token sampled behind a position is one of the sequence's too.
        self._num_slots = np.zeros(num_rows, np.int32)
        # Blocks before this index of the table are shared and only read.
        self._num_shared = np.zeros(num_rows, np.int32)
        # The decode rows found good last, which in steady decode are those of the next plan too; none after a release.
        self._decode_rows = b""
        self._decode_indices = np.empty(0, np.intp)  # the same, as numpy takes them fastest
        self._tables = np.zeros((num_rows, self._max_blocks), np.int32)
        # Per block: whether a live row owns it, and how many live rows share it.
        self._owned = np.zeros(limits.num_blocks, np.bool_)
        self._num_readers = np.zeros(limits.num_blocks, np.int32)

    def apply(self, plan: StepPlan) -> Step:
        """Checks a plan and takes it as run; StepFailure, naming the field, where it breaks the contract."""
        if plan.step_id <= self._last_step_id:
            raise invalid("step_id", f"{plan.step_id} is not above {self._last_step_id}")
        self._last_step_id = plan.step_id
        self._check_shape(plan)
        if len(plan.release_rows):
            self._release(plan.release_rows)
        for index, start in enumerate(plan.starts):
            self._start(f"starts[{index}]", start)
        if len(plan.new_block_rows):
            self._append_blocks(plan.new_block_rows, plan.new_block_ids)
        if plan.prefills:
            prefilling = np.zeros(self._limits.max_num_seqs, np.bool_)
            for index, prefill in enumerate(plan.prefills):
                self._prefill(f"prefills[{index}]", prefill, prefilling)
        positions = self._decode(plan)
        # Only now, so that a row in prefills is not found among the decode rows: it has not sampled before.
        for prefill in plan.prefills:
            self._sampled[prefill.row] = prefill.samples
        if plan.masks:
            self._check_masks(plan)
        return Step(plan, positions)

    def _check_shape(self, plan: StepPlan) -> None:
        steps, most = plan.num_decode_steps, self._limits.max_num_decode_steps
        if not 1 <= steps <= most:
            raise invalid("num_decode_steps", f"{steps} is not in [1, {most}]")
        if steps > 1 and (plan.prefills or plan.masks):
            raise invalid("num_decode_steps", f"{steps} in a plan with prefills or masks")
        if len(plan.new_block_rows) != len(plan.new_block_ids):
            raise invalid(
                "new_block_ids", f"{len(plan.new_block_ids)} ids for {len(plan.new_block_rows)} rows"
            )
        if len(plan.decode_row_steps) != len(plan.decode_rows):
            what = f"{len(plan.decode_row_steps)} counts for {len(plan.decode_rows)} rows"
            raise invalid("decode_row_steps", what)
        num_tokens = len(plan.decode_rows)
        if plan.prefills:
            num_tokens += sum(max(prefill.num_tokens, 0) for prefill in plan.prefills)
        if num_tokens > self._limits.max_num_batched_tokens:
            field = "prefills" if plan.prefills else "decode_rows"
            raise invalid(field, f"{num_tokens} tokens, above {self._limits.max_num_batched_tokens}")

    def _check_live(self, field: str, rows: Int32Array) -> None:
        """Raises unless each of `rows` is in range and started."""
        check_ids(field, rows, 0, self._limits.max_num_seqs)
        self._check_flags(field, rows, self._live, "is not started")

    def _check_flags(self, field: str, rows: Int32Array, flags: np.ndarray, lacking: str) -> None:
        """Raises unless each of `rows`, which are in range, has its flag set."""
        if (bad := first_true(~flags[rows])) is not None:
            raise invalid(f"{field}[{bad}]", f"row {rows[bad]} {lacking}", (int(rows[bad]),))

    def _release(self, rows: Int32Array) -> None:
        self._check_live("release_rows", rows)
        check_once("release_rows", rows)
        for row in rows.tolist():
            table, num_shared = self._tables[row, : self._num_blocks[row]], self._num_shared[row]
            # No id is twice in one table, so plain indexing counts each once.
            self._num_readers[table[:num_shared]] -= 1
            self._owned[table[num_shared:]] = False
        self._live[rows] = False
        self._sampled[rows] = False
        self._decode_rows = b""

    def _start(self, field: str, start: StartRow) -> None:
        check_start(field, start, self._limits)
        row, table = start.row, start.block_table
        if self._live[row]:
            raise invalid(f"{field}.row", f"row {row} is not clear", (row,))
        num_shared = start.num_computed_tokens // self._limits.block_size
        self._own(f"{field}.block_table", table[num_shared:], row, num_shared)
        self._num_readers[table[:num_shared]] += 1
        self._live[row] = True
        self._num_known[row] = len(start.token_ids)
        self._length[row] = start.num_computed_tokens
        self._num_shared[row] = num_shared
        self._num_blocks[row] = len(table)
        self._count_slots(np.array([row]))
        self._tables[row, : len(table)] = table

    def _own(self, field: str, blocks: Int32Array, rows: int | Int32Array, first: int = 0) -> None:
        """Takes `blocks`, each listed once, as writable; raises where a live row holds one. `first` counts on."""
        if (bad := first_true(self._owned[blocks] | (self._num_readers[blocks] > 0))) is not None:
            row = int(np.broadcast_to(rows, blocks.shape)[bad])
            raise invalid(f"{field}[{first + bad}]", f"block {blocks[bad]} is in a row's table", (row,))
        self._owned[blocks] = True

    def _append_blocks(self, rows: Int32Array, ids: Int32Array) -> None:
        self._check_live("new_block_rows", rows)
        check_ids("new_block_ids", ids, 1, self._limits.num_blocks)
        check_once("new_block_ids", ids)
        self._own("new_block_ids", ids, rows)
        # A row listed several times gets its blocks one after the other: sorted stably, the distance from the
        # first entry of a run of one row is the entry's turn.
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        turns = np.arange(len(rows)) - np.searchsorted(ordered, ordered)
        indices = self._num_blocks[ordered] + turns
        if (bad := first_true(indices >= self._max_blocks)) is not None:
            entry, row = int(order[bad]), int(ordered[bad])
            what = f"row {row} has {self._max_blocks} blocks, enough for max_model_len"
            raise invalid(f"new_block_rows[{entry}]", what, (row,))
        self._tables[ordered, indices] = ids[order]
        np.add.at(self._num_blocks, rows, 1)
        self._count_slots(rows)

    def _count_slots(self, rows: NDArray[np.integer]) -> None:
        num_slots = self._num_blocks[rows] * self._limits.block_size
        self._num_slots[rows] = np.minimum(num_slots, self._limits.max_model_len - 1)

    def _prefill(self, field: str, prefill: Prefill, prefilling: np.ndarray) -> None:
        row, count = prefill.row, prefill.num_tokens
        if not 0 <= row < self._limits.max_num_seqs or not self._live[row]:
            raise invalid(f"{field}.row", f"row {row} is not started", (row,))
        if prefilling[row]:
            raise invalid(f"{field}.row", f"row {row} is listed twice", (row,))
        prefilling[row] = True
        if prefill.first_position != self._length[row]:
            what = f"{prefill.first_position}, but row {row} has {self._length[row]} positions"
            raise invalid(f"{field}.first_position", what, (row,))
        end, num_known = prefill.first_position + count, int(self._num_known[row])
        if count < 1 or end > num_known:
            what = f"{count} tokens, not 1 to {num_known - prefill.first_position}"
            raise invalid(f"{field}.num_tokens", what, (row,))
        num_slots = int(self._num_blocks[row]) * self._limits.block_size
        if end > num_slots:
            raise invalid(f"{field}.num_tokens", f"ends at {end}, row {row} has {num_slots} slots", (row,))
        if end == self._limits.max_model_len:
            raise invalid(f"{field}.num_tokens", f"row {row} would sample past max_model_len {end}", (row,))
        if prefill.samples != (end == num_known):
            what = f"{prefill.samples}, ending at {end} of {num_known} known tokens"
            raise invalid(f"{field}.samples", what, (row,))
        self._length[row] = end

    def _decode(self, plan: StepPlan) -> Int32Array:
        """Returns the positions that the decode rows compute first, and advances their lengths."""
        rows, steps = plan.decode_rows, plan.decode_row_steps
        if not len(rows):
            return np.empty(0, np.int32)
        if rows.tobytes() != self._decode_rows:
            self._check_live("decode_rows", rows)
            self._check_flags("decode_rows", rows, self._sampled, "has not sampled")
            check_once("decode_rows", rows)
            self._decode_rows, self._decode_indices = rows.tobytes(), rows.astype(np.intp)
        check_ids("decode_row_steps", steps, 1, plan.num_decode_steps + 1)
        indices = self._decode_indices
        positions = self._length[indices]
        ends = positions + steps
        if (bad := first_true(ends > self._num_slots[indices])) is not None:
            row = int(rows[bad])
            what = f"row {row} would end at {ends[bad]}, it may compute {self._num_slots[row]} positions"
            raise invalid(f"decode_rows[{bad}]", what, (row,))
        self._length[indices] = ends
        return positions

    def _check_masks(self, plan: StepPlan) -> None:
        sampling = np.zeros(self._limits.max_num_seqs, np.bool_)
        sampling[[prefill.row for prefill in plan.prefills if prefill.samples]] = True
        sampling[plan.decode_rows] = True
        for index, mask in enumerate(plan.masks):
            field, row = f"masks[{index}]", mask.row
            if not 0 <= row < self._limits.max_num_seqs or not sampling[row]:
                raise invalid(f"{field}.row", f"row {row} does not sample in this plan, or is listed twice")
            sampling[row] = False
            if mask.allowed_bits.shape != (-(-self._limits.vocab_size // 8),):
                what = f"is of {mask.allowed_bits.shape} bytes, which are not {self._limits.vocab_size} bits"
                raise invalid(f"{field}.mask", what, (row,))
