"""The batch that lives on the device: for each row its block table, its tokens, its length and how it samples.

One thread owns it. Plans change it through pinned staging, steps change it on the device. Numbers that only decide
which work a step needs are kept on the host beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from executor_svc.plan import StartRow, StepPlan
from executor_svc.row_params import RowNeeds, RowParams
from executor_svc.runner import RunnerLimits
from executor_svc.staging import StagingRing, upload
from nanoserve.arrays import Int32Array

# A plan takes as many slots of the ring at most, and each of its passes one more.
_SLOTS_PER_PLAN = 2


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """What the penalties look at."""

    seen: torch.Tensor
    """bool [max_num_seqs, vocab_size]: the prompt or the output has the token."""
    output: torch.Tensor
    """int32 [max_num_seqs, vocab_size]: how many times the output has it."""


class BatchState:
    """All rows, and behind the last one the dummy row that padding computes: of length 0, in block 0.

    Changed by plans, and by the tokens that steps sample.
    """

    def __init__(self, limits: RunnerLimits, device: torch.device) -> None:
        self.dummy_row = limits.max_num_seqs
        num_rows = limits.max_num_seqs + 1
        max_blocks = -(-limits.max_model_len // limits.block_size)
        self.device = device
        self.vocab_size = limits.vocab_size
        self.block_tables = torch.zeros(num_rows, max_blocks, dtype=torch.int32, device=device)
        self.token_ids = torch.zeros(num_rows, limits.max_model_len, dtype=torch.int32, device=device)
        self.lengths = torch.zeros(num_rows, dtype=torch.int32, device=device)
        """Positions whose keys and values are computed."""
        self.params = RowParams(num_rows, device)
        self.needs = RowNeeds(num_rows)
        self.counts: TokenCounts | None = None
        """None until a row first needs penalties."""
        self.logit_bias: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """For rows that have one: ids (int64) and addends."""
        self.end_token_ids: dict[int, torch.Tensor] = {}
        """For rows that may not sample them yet: int64."""
        # Enough for the plans in flight, and one more.
        num_slots = (_SLOTS_PER_PLAN + limits.max_num_decode_steps) * (limits.max_plans_in_flight + 1)
        self.staging = StagingRing(num_slots, device, torch.cuda.Event if device.type == "cuda" else None)
        self._num_blocks: Int32Array = np.zeros(num_rows, np.int32)

    def clear(self) -> None:
        """Forgets all rows."""
        self.logit_bias.clear()
        self.end_token_ids.clear()

    def apply(self, plan: StepPlan) -> None:
        """Releases rows, starts rows and appends blocks, in this order."""
        for row in plan.release_rows.tolist():
            self.logit_bias.pop(row, None)
            self.end_token_ids.pop(row, None)
        if plan.starts:
            self._start(plan.starts)
        if len(plan.new_block_rows):
            self._append_blocks(plan.new_block_rows, plan.new_block_ids)

    def upload(self, array: np.ndarray) -> torch.Tensor:
        """A tensor of its own on the batch's device."""
        return upload(array, self.device)

    def advance(self, rows: torch.Tensor, counts: torch.Tensor) -> None:
        """Adds the positions that a pass has computed: int32 [n] each, `rows` none twice but for the dummy."""
        self.lengths.index_add_(0, rows, counts)
        self.lengths[self.dummy_row :].zero_()

    def count(self, rows: Int32Array, token_ids: torch.Tensor) -> None:
        """Notes sampled tokens (int32 [num_rows], on the device) for the rows that have penalties."""
        penalised = np.flatnonzero(self.needs.penalties[rows])
        if len(penalised) and self.counts is not None:
            device_rows = self.upload(rows[penalised]).long()
            tokens = token_ids[self.upload(penalised)].long()
            # Not by an index and `= True`: that number would be copied from the host, and waited for.
            self.counts.seen.view(-1).index_fill_(0, device_rows * self.vocab_size + tokens, True)
            self.counts.output[device_rows, tokens] += 1

    def _start(self, starts: tuple[StartRow, ...]) -> None:
        for start in starts:
            self.needs.put(start)
            self._num_blocks[start.row] = len(start.block_table)
        tokens = _Runs([(start.row, start.token_ids) for start in starts], self.token_ids)
        blocks = _Runs([(start.row, start.block_table) for start in starts], self.block_tables)
        rows = np.array([start.row for start in starts], np.int64)
        lengths = np.array([start.num_computed_tokens for start in starts], np.int32)
        device_rows, device_lengths, reals, integers, *runs = self.staging.upload(
            [rows, lengths, *self.params.pack(starts), *tokens.parts, *blocks.parts]
        )
        self.lengths.index_copy_(0, device_rows, device_lengths)
        self.params.put(device_rows, reals, integers)
        tokens.write(*runs[:3])
        blocks.write(*runs[3:])
        for start in starts:
            self._put_rare(start)

    def _put_rare(self, start: StartRow) -> None:
        """What few rows have, of one row."""
        row, sampling = start.row, start.sampling
        if self.needs.penalties[row]:
            self._count_known(row, len(start.token_ids), start.num_prompt_tokens)
        if len(sampling.logit_bias_ids):
            ids = self.upload(sampling.logit_bias_ids).long()
            self.logit_bias[row] = ids, self.upload(sampling.logit_bias)
        if self.needs.first_end_position[row] > 0:
            self.end_token_ids[row] = self.upload(sampling.end_token_ids).long()

    def _append_blocks(self, rows: Int32Array, block_ids: Int32Array) -> None:
        """Appends in order; a row may get several."""
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        turns = np.arange(len(rows)) - np.searchsorted(ordered, ordered)
        cells = ordered.astype(np.int64) * self.block_tables.shape[1] + self._num_blocks[ordered] + turns
        np.add.at(self._num_blocks, rows, 1)
        device_cells, device_ids = self.staging.upload([cells, block_ids[order]])
        self.block_tables.view(-1).index_copy_(0, device_cells, device_ids)

    def _count_known(self, row: int, num_tokens: int, num_prompt_tokens: int) -> None:
        """Counts the tokens that a row starts with."""
        if self.counts is None:
            shape = (self.dummy_row, self.vocab_size)
            self.counts = TokenCounts(
                seen=torch.zeros(shape, dtype=torch.bool, device=self.device),
                output=torch.zeros(shape, dtype=torch.int32, device=self.device),
            )
        token_ids = self.token_ids[row, :num_tokens].long()
        self.counts.seen[row].zero_().index_fill_(0, token_ids, True)
        output = token_ids[num_prompt_tokens:]
        self.counts.output[row].zero_().index_add_(0, output, torch.ones_like(output, dtype=torch.int32))


class _Runs:
    """For some rows of a table, [num_rows, width], what to write from their first column on: the cells of one write."""

    def __init__(self, runs: Sequence[tuple[int, Int32Array]], table: torch.Tensor) -> None:
        self._table = table
        counts = np.array([len(values) for _, values in runs], np.int64)
        before = np.cumsum(counts) - counts
        rows = np.array([row for row, _ in runs], np.int64)
        self._total = int(counts.sum())
        self.parts = (rows * table.shape[1] - before, counts, np.concatenate([values for _, values in runs]))
        """To be uploaded: each run's cell less its place among the values, its number of values, all values."""

    def write(self, bases: torch.Tensor, counts: torch.Tensor, values: torch.Tensor) -> None:
        """Writes, being given what was uploaded of `parts`."""
        if self._total:
            # The number is given, so that the host need not learn it from the device.
            base = bases.repeat_interleave(counts, output_size=self._total)
            cells = base + torch.arange(self._total, device=self._table.device)
            self._table.view(-1).index_copy_(0, cells, values)
