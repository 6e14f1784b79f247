"""The batch that lives on the device: for each row its block table, its tokens, its length and how it samples.

One thread owns it. Plans change it through pinned staging, steps change it on the device. Numbers that only decide
which work a step needs are kept on the host beside it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from executor_svc.plan import StartRow, StepPlan
from executor_svc.row_params import Int64Array, RowNeeds, RowParams
from executor_svc.runner import RunnerLimits
from executor_svc.staging import StagingRing, upload
from nanoserve.arrays import Int32Array

# A plan takes as many slots of the ring at most, and each of its passes one more.
_SLOTS_PER_PLAN = 2

_Write = tuple[Int64Array, Int32Array]
"""Cells of the state, and what they get."""


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
        shapes = ((num_rows, max_blocks), (num_rows, limits.max_model_len), (num_rows,))
        sizes = [RowParams.num_cells(num_rows), *(math.prod(shape) for shape in shapes)]
        # One tensor, so that all that a plan changes is one upload and one write.
        self._cells = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        params, *tables = self._cells.split(sizes)
        self._first_block, self._first_token, self._first_length = np.cumsum(sizes)[:3].tolist()
        self.block_tables, self.token_ids, self.lengths = (
            table.view(shape) for table, shape in zip(tables, shapes, strict=True)
        )
        """int32 [num_rows, max_blocks], [num_rows, max_model_len], and [num_rows]: positions whose KV is computed."""
        self.params = RowParams(params, num_rows)
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
        writes = [*self._start(plan.starts), *self._append_blocks(plan.new_block_rows, plan.new_block_ids)]
        if writes:
            cells, values = (np.concatenate(parts) for parts in zip(*writes, strict=True))
            self._cells.index_copy_(0, *self.staging.upload([cells, values]))
        for start in plan.starts:
            self._put_rare(start)

    def put_tokens(self, rows: torch.Tensor, positions: torch.Tensor, token_ids: torch.Tensor) -> None:
        """Writes sampled tokens, int32 [n] each, where their rows (none twice but for the dummy) have them next.

        The dummy row keeps its zeros.
        """
        self.token_ids[rows, positions] = token_ids
        self.token_ids[self.dummy_row].zero_()

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

    def _start(self, starts: Sequence[StartRow]) -> Iterator[_Write]:
        if not starts:
            return
        for start in starts:
            row, num_tokens, num_blocks = start.row, len(start.token_ids), len(start.block_table)
            self.needs.put(start)
            self._num_blocks[row] = num_blocks
            first_token = self._first_token + row * self.token_ids.shape[1]
            first_block = self._first_block + row * self.block_tables.shape[1]
            yield np.arange(first_token, first_token + num_tokens), start.token_ids
            yield np.arange(first_block, first_block + num_blocks), start.block_table
        rows = np.array([start.row for start in starts], np.int64)
        yield self._first_length + rows, np.array([start.num_computed_tokens for start in starts], np.int32)
        yield self.params.pack(starts)

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

    def _append_blocks(self, rows: Int32Array, block_ids: Int32Array) -> Iterator[_Write]:
        """Appends in order; a row may get several."""
        if not len(rows):
            return
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        turns = np.arange(len(rows)) - np.searchsorted(ordered, ordered)
        columns = self._num_blocks[ordered] + turns
        np.add.at(self._num_blocks, rows, 1)
        first_cells = self._first_block + ordered.astype(np.int64) * self.block_tables.shape[1]
        yield first_cells + columns, block_ids[order]

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
