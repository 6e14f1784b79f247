"""The batch that lives on the device: for each row its block table, its tokens and how it samples.

One thread owns it. Numbers that only decide which work a step needs are kept on the host beside it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from executor_svc.noise import seed_as_int64
from executor_svc.plan import RowSampling, StartRow, StepPlan
from executor_svc.runner import RunnerLimits
from nanoserve.arrays import Int32Array

BoolArray = NDArray[np.bool_]


class RowParams:
    """Sampling parameters on the device, each [max_num_seqs]."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self.temperature = torch.zeros(num_rows, device=device)
        self.top_p = torch.ones(num_rows, device=device)
        self.min_p = torch.zeros(num_rows, device=device)
        self.repetition_penalty = torch.ones(num_rows, device=device)
        self.frequency_penalty = torch.zeros(num_rows, device=device)
        self.presence_penalty = torch.zeros(num_rows, device=device)
        self.top_k = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.seeds = torch.zeros(num_rows, dtype=torch.int64, device=device)

    def put(self, rows: torch.Tensor, starts: tuple[StartRow, ...]) -> None:
        """Sets the parameters of started rows; `rows` int64 [num_starts]."""
        for name in (
            "temperature",
            "top_p",
            "min_p",
            "repetition_penalty",
            "frequency_penalty",
            "presence_penalty",
            "top_k",
        ):
            target: torch.Tensor = getattr(self, name)
            values = [getattr(start.sampling, name) for start in starts]
            target[rows] = torch.tensor(values, dtype=target.dtype, device=target.device)
        seeds = [seed_as_int64(start.seed) for start in starts]
        self.seeds[rows] = torch.tensor(seeds, device=self.seeds.device)


class RowNeeds:
    """On the host: what each row asks for, so that a step does only the work that one of its rows needs."""

    def __init__(self, num_rows: int) -> None:
        self.draws: BoolArray = np.zeros(num_rows, np.bool_)
        """Samples with noise, rather than greedily."""
        self.top_k_or_p: BoolArray = np.zeros(num_rows, np.bool_)
        self.min_p: BoolArray = np.zeros(num_rows, np.bool_)
        self.penalties: BoolArray = np.zeros(num_rows, np.bool_)
        self.logit_bias: BoolArray = np.zeros(num_rows, np.bool_)
        self.reports_gap: BoolArray = np.zeros(num_rows, np.bool_)
        self.first_end_position: Int32Array = np.zeros(num_rows, np.int32)
        """Position from which on the row's end tokens may be sampled."""
        self.num_prompt_tokens: Int32Array = np.zeros(num_rows, np.int32)
        self.logprobs: Int32Array = np.full(num_rows, -1, np.int32)
        """Alternatives to report with each sampled token; -1: report nothing."""
        self.prompt_logprobs: Int32Array = np.full(num_rows, -1, np.int32)

    def put(self, start: StartRow) -> None:
        """Sets what a started row needs."""
        row, sampling = start.row, start.sampling
        draws = sampling.temperature > 0
        self.draws[row] = draws
        # Greedy rows take the best token, which these filters always keep.
        self.top_k_or_p[row] = draws and (sampling.top_k > 0 or sampling.top_p < 1)
        self.min_p[row] = draws and sampling.min_p > 0
        self.penalties[row] = has_penalties(sampling)
        self.logit_bias[row] = len(sampling.logit_bias_ids) > 0
        self.reports_gap[row] = sampling.report_gap
        limited = sampling.min_tokens > 0 and len(sampling.end_token_ids) > 0
        self.first_end_position[row] = start.num_prompt_tokens + sampling.min_tokens if limited else 0
        self.num_prompt_tokens[row] = start.num_prompt_tokens
        self.logprobs[row] = -1 if sampling.logprobs is None else sampling.logprobs
        self.prompt_logprobs[row] = -1 if sampling.prompt_logprobs is None else sampling.prompt_logprobs


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """What the penalties look at."""

    seen: torch.Tensor
    """bool [max_num_seqs, vocab_size]: the prompt or the output has the token."""
    output: torch.Tensor
    """int32 [max_num_seqs, vocab_size]: how many times the output has it."""


class BatchState:
    """All rows. Changed by plans, and by the tokens that steps sample."""

    def __init__(self, limits: RunnerLimits, device: torch.device) -> None:
        num_rows = limits.max_num_seqs
        max_blocks = -(-limits.max_model_len // limits.block_size)
        self.device = device
        self.vocab_size = limits.vocab_size
        self.block_tables = torch.zeros(num_rows, max_blocks, dtype=torch.int32, device=device)
        self.token_ids = torch.zeros(num_rows, limits.max_model_len, dtype=torch.int32, device=device)
        self.params = RowParams(num_rows, device)
        self.needs = RowNeeds(num_rows)
        self.counts: TokenCounts | None = None
        """None until a row first needs penalties."""
        self.logit_bias: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """For rows that have one: ids (int64) and addends."""
        self.end_token_ids: dict[int, torch.Tensor] = {}
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

    def record(self, rows: Int32Array, positions: Int32Array, token_ids: torch.Tensor) -> None:
        """Writes back sampled tokens: `token_ids` int64 [num_rows] on the device, one at each row's position."""
        device_rows = torch.tensor(rows, device=self.device)
        self.token_ids[device_rows, torch.tensor(positions, device=self.device)] = token_ids.int()
        penalised = np.flatnonzero(self.needs.penalties[rows])
        if len(penalised) and self.counts is not None:
            chosen = torch.tensor(penalised, device=self.device)
            self.counts.seen[device_rows[chosen], token_ids[chosen]] = True
            self.counts.output[device_rows[chosen], token_ids[chosen]] += 1

    def _start(self, starts: tuple[StartRow, ...]) -> None:
        self.params.put(torch.tensor([start.row for start in starts], device=self.device), starts)
        for start in starts:
            row, sampling = start.row, start.sampling
            self.needs.put(start)
            token_ids = self._upload(start.token_ids)
            self.token_ids[row, : len(token_ids)] = token_ids
            self.block_tables[row, : len(start.block_table)] = self._upload(start.block_table)
            self._num_blocks[row] = len(start.block_table)
            if self.needs.penalties[row]:
                self._count(row, token_ids.long(), start.num_prompt_tokens)
            if len(sampling.logit_bias_ids):
                ids = self._upload(sampling.logit_bias_ids).long()
                self.logit_bias[row] = ids, torch.tensor(sampling.logit_bias, device=self.device)
            self.end_token_ids[row] = self._upload(sampling.end_token_ids).long()

    def _append_blocks(self, rows: Int32Array, block_ids: Int32Array) -> None:
        """Appends in order; a row may get several."""
        columns = np.empty_like(rows)
        for index, row in enumerate(rows.tolist()):
            columns[index] = self._num_blocks[row]
            self._num_blocks[row] += 1
        self.block_tables[self._upload(rows), self._upload(columns)] = self._upload(block_ids)

    def _count(self, row: int, token_ids: torch.Tensor, num_prompt_tokens: int) -> None:
        """Counts the tokens that a row starts with; `token_ids` int64 [num_tokens]."""
        if self.counts is None:
            shape = (len(self.block_tables), self.vocab_size)
            self.counts = TokenCounts(
                seen=torch.zeros(shape, dtype=torch.bool, device=self.device),
                output=torch.zeros(shape, dtype=torch.int32, device=self.device),
            )
        self.counts.seen[row] = False
        self.counts.seen[row, token_ids] = True
        output = token_ids[num_prompt_tokens:]
        self.counts.output[row] = torch.bincount(output, minlength=self.vocab_size).int()

    def _upload(self, array: Int32Array) -> torch.Tensor:
        return torch.tensor(array, dtype=torch.int32, device=self.device)


def has_penalties(sampling: RowSampling) -> bool:
    """Whether any penalty of the row is not neutral."""
    return (
        sampling.repetition_penalty != 1 or sampling.frequency_penalty != 0 or sampling.presence_penalty != 0
    )
