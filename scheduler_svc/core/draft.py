"""A plan in the making, and what is remembered of it until its result comes."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scheduler_svc.core.prefix_cache import CacheEntry
from scheduler_svc.core.request import Int32Array, Int64Array
from scheduler_svc.core.rows import RowTable
from scheduler_svc.core.step import NO_ROWS, PrefillChunk, SequenceStart, StepPlan, StepResult

_NO_ENDS: Int64Array = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class PlannedStep:
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

    def is_answered_by(self, result: StepResult, sub_step: int, vocab_size: int) -> bool:
        """Whether the result has just the rows that this plan's sub-step samples, and tokens that exist."""
        rows, _ = self.sampling_rows(sub_step)
        tokens = result.token_ids
        if result.failed is not None:
            tokens = tokens[~result.failed]
        return (
            (result.step_id, result.sub_step) == (self.step_id, sub_step)
            and result.last == (sub_step == self.num_decode_steps - 1)
            and result.rows.astype(np.intp).tobytes() == rows.tobytes()
            and len(result.token_ids) == len(rows)
            # Unsigned, a negative token is out of range too.
            and not np.count_nonzero(tokens.view(np.uint32) >= vocab_size)
        )

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


@dataclass(slots=True)
class Draft:
    """Collects a step's parts; tokens count towards its budget."""

    step_id: int
    starts: list[SequenceStart] = field(default_factory=list)
    new_block_rows: list[int] = field(default_factory=list)
    new_block_ids: list[int] = field(default_factory=list)
    prefills: list[PrefillChunk] = field(default_factory=list)
    decode_rows: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))
    decode_row_steps: Int32Array = field(default_factory=lambda: NO_ROWS)
    decode_ends: Int64Array = field(default_factory=lambda: _NO_ENDS)
    num_decode_steps: int = 1
    num_prefill_tokens: int = 0
    num_start_bytes: int = 0
    entries: list[CacheEntry] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """What counts towards max_num_batched_tokens: prefill tokens plus decoding rows."""
        return self.num_prefill_tokens + len(self.decode_rows)

    def finish(self, rows: RowTable, release_rows: list[int]) -> tuple[StepPlan, PlannedStep]:
        """Returns the plan, and what to remember of it."""
        all_rows, num_samples, every_row_samples = self.decode_rows, self.decode_row_steps, True
        if self.prefills:
            prefill_rows = [chunk.row for chunk in self.prefills]
            prefill_samples = [int(chunk.samples) for chunk in self.prefills]
            all_rows = np.concatenate([np.array(prefill_rows, np.intp), all_rows])
            num_samples = np.concatenate([np.array(prefill_samples, np.int32), num_samples])
            every_row_samples = all(prefill_samples)
        planned = PlannedStep(
            self.step_id,
            all_rows,
            rows.incarnation[all_rows],
            num_samples,
            1 if self.num_decode_steps == 1 and every_row_samples else int(num_samples.min()),
            self.num_decode_steps,
            self.entries,
        )
        plan = StepPlan(
            step_id=self.step_id,
            release_rows=release_rows,
            starts=self.starts,
            new_block_rows=self.new_block_rows,
            new_block_ids=self.new_block_ids,
            prefills=self.prefills,
            decode_rows=self.decode_rows.astype(np.int32),
            decode_row_steps=self.decode_row_steps,
            decode_ends=self.decode_ends,
            num_decode_steps=self.num_decode_steps,
        )
        return plan, planned
