"""A plan in the making, and what is remembered of it until its result comes."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler_svc.core.prefix_cache import CacheEntry
from scheduler_svc.core.request import Int32Array, Int64Array
from scheduler_svc.core.rows import RowTable
from scheduler_svc.core.steady import SteadyBatch
from scheduler_svc.core.step import NO_ROWS, PrefillChunk, SequenceStart, StepPlan, StepResult

_NOBODY: NDArray[np.intp] = np.empty(0, np.intp)
_NO_ENDS: Int64Array = np.empty(0, np.int64)


class SteadyStep(NamedTuple):
    """A step of a steady batch."""

    batch: SteadyBatch
    ends: Int64Array
    """Positions of each row that are computed once it has run: as many tokens as are known before its result."""
    filled: NDArray[np.intp]
    """Which rows, by their place, have filled a block then."""
    reaches_max_len: bool
    """Whether its result brings a row to its max_len."""


class PlannedStep(NamedTuple):
    """A plan that was sent: who held its rows when it was made. Columns of one length, prefills first."""

    step_id: int
    rows: NDArray[np.intp]
    incarnations: Int64Array
    num_samples: Int32Array
    """Tokens each row samples: 0 for a prefill that does not end the known tokens, else its sub-steps."""
    num_full_sub_steps: int
    """Sub-steps in which every row samples."""
    num_decode_steps: int
    entries: list[CacheEntry]
    """Provisional entries of the blocks that the step fills."""
    steady: SteadyStep | None = None
    """What is known beforehand where the plan goes on with a steady batch and does nothing else."""

    def is_answered_by(self, result: StepResult, sub_step: int, vocab_size: NDArray[np.uint32]) -> bool:
        """Whether the result has just the rows that this plan's sub-step samples, and tokens that exist."""
        tokens = result.token_ids
        if result.failed is not None:
            tokens = tokens[~result.failed]
        return (
            (result.step_id, result.sub_step) == (self.step_id, sub_step)
            and result.last == (sub_step == self.num_decode_steps - 1)
            and result.rows.astype("<i4", copy=False).tobytes() == self._packed_sampling_rows(sub_step)
            and len(result.token_ids) == len(result.rows)
            # Unsigned, a negative token is out of range too.
            and not np.count_nonzero(tokens.view(np.uint32) >= vocab_size)
        )

    def _packed_sampling_rows(self, sub_step: int) -> bytes:
        if self.steady is not None:
            return self.steady.batch.packed_rows
        return self.sampling_rows(sub_step)[0].astype("<i4").tobytes()

    def sampling_rows(self, sub_step: int) -> tuple[NDArray[np.intp], Int64Array]:
        """Rows that sample in a sub-step, and the incarnations that held them."""
        if sub_step < self.num_full_sub_steps:
            return self.rows, self.incarnations
        samples = self.num_samples > sub_step
        return self.rows[samples], self.incarnations[samples]

    def incarnation_of(self, row: int) -> int | None:
        """Who held a row of this plan; None for a row that computes nothing in it."""
        (found,) = np.nonzero(self.rows == row)
        return int(self.incarnations[found[0]]) if len(found) else None


class Draft:
    """Collects a step's parts; tokens count towards its budget."""

    def __init__(self, step_id: int) -> None:
        self.step_id = step_id
        self.starts: list[SequenceStart] = []
        self.new_block_rows: list[int] = []
        self.new_block_ids: list[int] = []
        self.prefills: list[PrefillChunk] = []
        self.decode_rows = _NOBODY
        self.decode_row_steps = NO_ROWS
        self.decode_ends = _NO_ENDS
        self.num_decode_steps = 1
        self.num_prefill_tokens = 0
        self.num_start_bytes = 0
        self.entries: list[CacheEntry] = []
        self.batch: SteadyBatch | None = None
        """Which the decode rows are, where the step goes on with one."""

    @property
    def num_tokens(self) -> int:
        """What counts towards max_num_batched_tokens: prefill tokens plus decoding rows."""
        return self.num_prefill_tokens + len(self.decode_rows)

    def finish(self, rows: RowTable, release_rows: list[int]) -> tuple[StepPlan, PlannedStep]:
        """Returns the plan, and what to remember of it."""
        batch = self.batch
        if batch is None:
            wire_rows, packed_rows = self.decode_rows.astype(np.int32), None
        else:
            wire_rows, packed_rows = batch.wire_rows, batch.packed_rows
        plan = StepPlan(
            step_id=self.step_id,
            release_rows=release_rows,
            starts=self.starts,
            new_block_rows=self.new_block_rows,
            new_block_ids=self.new_block_ids,
            prefills=self.prefills,
            decode_rows=wire_rows,
            decode_row_steps=self.decode_row_steps,
            decode_ends=self.decode_ends,
            num_decode_steps=self.num_decode_steps,
            masks=rows.masks(self._sampling_rows()) if rows.num_guided else [],
            packed_decode_rows=packed_rows,
        )
        if batch is None or self.prefills:
            return plan, self._planned(rows)
        steady = SteadyStep(batch, self.decode_ends, batch.filled(), not batch.num_steps_left)
        return plan, PlannedStep(
            self.step_id, batch.rows, batch.incarnations, batch.steps, 1, 1, self.entries, steady
        )

    def _sampling_rows(self) -> list[int]:
        rows: list[int] = self.decode_rows.tolist()
        return [chunk.row for chunk in self.prefills if chunk.samples] + rows

    def _planned(self, rows: RowTable) -> PlannedStep:
        all_rows, num_samples, every_row_samples = self.decode_rows, self.decode_row_steps, True
        if self.prefills:
            prefill_rows = [chunk.row for chunk in self.prefills]
            prefill_samples = [int(chunk.samples) for chunk in self.prefills]
            all_rows = np.concatenate([np.array(prefill_rows, np.intp), all_rows])
            num_samples = np.concatenate([np.array(prefill_samples, np.int32), num_samples])
            every_row_samples = all(prefill_samples)
        return PlannedStep(
            self.step_id,
            all_rows,
            rows.incarnation[all_rows],
            num_samples,
            1 if self.num_decode_steps == 1 and every_row_samples else int(num_samples.min()),
            self.num_decode_steps,
            self.entries,
        )
