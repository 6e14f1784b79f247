"""Runs one sub-step of a step at a time, from the batch state to sampled tokens, on the thread that calls it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from executor_svc.attention import AttentionBackend, AttentionContext, PrefillSpan
from executor_svc.batch import BatchState
from executor_svc.logprobs import MAX_PROMPT_SLICE, TokenLogprobs, token_logprobs
from executor_svc.models.qwen import QwenForCausalLM
from executor_svc.plan import Prefill, PromptLogprobs, RowLogprobs, RowStatus, Step, StepPlan, SubStepOutput
from executor_svc.sampler import SampledTokens, SamplingRows, sample
from executor_svc.slot_tokens import SlotTokens
from nanoserve.arrays import Float32Array, Int32Array

_NO_PREFILLS: tuple[Prefill, ...] = ()


@dataclass(frozen=True, slots=True)
class SubStepTensors:
    """What a sub-step computed, still on the device."""

    rows: Int32Array
    sampled: SampledTokens | None
    """None where no row samples."""
    logprobs: TokenLogprobs | None
    """Of every sampled token, with as many alternatives as the row that wants most; None where no row asked."""
    prompt_logprobs: tuple[tuple[int, int, TokenLogprobs], ...]
    """Row, first position judged, and the log-probabilities of a slice."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """The tokens of one forward pass: those of the prefills, then one a decode row."""

    prefills: Sequence[Prefill]
    decode_rows: Int32Array
    decode_positions: Int32Array

    def rows(self) -> Int32Array:
        """The row of each token: [num_tokens]."""
        runs = [np.full(run.num_tokens, run.row, np.int32) for run in self.prefills]
        return np.concatenate([*runs, self.decode_rows])

    def positions(self) -> Int32Array:
        """The position of each token: [num_tokens]."""
        runs = [
            np.arange(run.first_position, run.first_position + run.num_tokens, dtype=np.int32)
            for run in self.prefills
        ]
        return np.concatenate([*runs, self.decode_positions])

    def first_tokens(self) -> list[int]:
        """Index of the first token of each prefill, and then of the first decode row's."""
        return [0, *np.cumsum([run.num_tokens for run in self.prefills], dtype=np.int64).tolist()]

    def last_tokens(self) -> Int32Array:
        """Index of the token that each sampling row samples behind: prefills that sample, then decode rows."""
        firsts = self.first_tokens()
        ends = [end - 1 for run, end in zip(self.prefills, firsts[1:], strict=True) if run.samples]
        decodes = np.arange(firsts[-1], firsts[-1] + len(self.decode_rows))
        return np.concatenate([np.array(ends, np.int32), decodes.astype(np.int32)])


class ModelRunner:
    """The model, its attention and the batch state."""

    def __init__(
        self,
        model: QwenForCausalLM,
        attention: AttentionBackend,
        state: BatchState,
        block_size: int,
        slot_tokens: SlotTokens | None = None,
    ) -> None:
        """With `slot_tokens` every step checks what its rows' KV slots hold."""
        self.model = model
        self.attention = attention
        self.state = state
        self.block_size = block_size
        self.slot_tokens = slot_tokens

    def run(self, step: Step, sub_step: int) -> SubStepTensors:
        """Computes a sub-step and writes what it samples back to the batch state; the plan is applied already.

        StepFailure where `slot_tokens` finds a slot that holds another token than its row claims.
        """
        plan = step.plan
        going_on = plan.decode_row_steps > sub_step
        batch = _Batch(
            prefills=plan.prefills if sub_step == 0 else _NO_PREFILLS,
            decode_rows=plan.decode_rows[going_on],
            decode_positions=step.decode_positions[going_on] + np.int32(sub_step),
        )
        rows, positions = batch.rows(), batch.positions()
        hidden = self._forward(batch, rows, positions) if len(rows) else None
        if self.slot_tokens is not None:
            self.slot_tokens.check(self.state, _claimed_lengths(plan if sub_step == 0 else None, batch))
        if hidden is None:
            return SubStepTensors(rows, None, None, ())
        prompt_logprobs = self._judge_prompts(batch, hidden)
        last = batch.last_tokens()
        if not len(last):
            return SubStepTensors(rows[last], None, None, prompt_logprobs)
        masks = {mask.row: mask.allowed for mask in plan.masks}
        sampling = SamplingRows(self.state, rows[last], positions[last] + np.int32(1), masks)
        logits = self.model.logits(hidden[self._upload(last)])
        sampled = sample(logits, sampling)
        self.state.record(sampling.rows, sampling.positions, sampled.token_ids)
        most = int(self.state.needs.logprobs[sampling.rows].max())
        logprobs = token_logprobs(logits, sampled.token_ids, most) if most >= 0 else None
        return SubStepTensors(sampling.rows, sampled, logprobs, prompt_logprobs)

    def _forward(self, batch: _Batch, rows: Int32Array, positions: Int32Array) -> torch.Tensor:
        """Runs the model over all tokens: hidden states [num_tokens, hidden_size]."""
        state = self.state
        device_rows, device_positions = self._upload(rows), self._upload(positions)
        blocks = state.block_tables[device_rows, device_positions // self.block_size].long()
        spans = tuple(
            PrefillSpan(
                first, run.num_tokens, run.first_position + run.num_tokens, state.block_tables[run.row]
            )
            for first, run in zip(batch.first_tokens()[:-1], batch.prefills, strict=True)
        )
        context = AttentionContext(
            slot_mapping=blocks * self.block_size + device_positions % self.block_size,
            prefills=spans,
            decode_block_tables=state.block_tables[self._upload(batch.decode_rows)],
            decode_context_lens=batch.decode_positions + np.int32(1),
        )
        token_ids = state.token_ids[device_rows, device_positions]
        if self.slot_tokens is not None:
            self.slot_tokens.write(context.slot_mapping, token_ids)
        hidden: torch.Tensor = self.model(token_ids, device_positions, self.attention, context)
        return hidden

    def _judge_prompts(
        self, batch: _Batch, hidden: torch.Tensor
    ) -> tuple[tuple[int, int, TokenLogprobs], ...]:
        """Log-probabilities of the prompt positions that this step's logits judge, for the rows that ask.

        Position p is judged at p - 1: a run's last logits judge the first token of the next run, known already.
        """
        needs, slices = self.state.needs, []
        for first_token, run in zip(batch.first_tokens()[:-1], batch.prefills, strict=True):
            row, alternatives = run.row, int(needs.prompt_logprobs[run.row])
            if alternatives < 0:
                continue
            end = min(run.first_position + run.num_tokens, int(needs.num_prompt_tokens[row]) - 1)
            for position in range(run.first_position, end, MAX_PROMPT_SLICE):
                stop = min(position + MAX_PROMPT_SLICE, end)
                offset = first_token - run.first_position
                logits = self.model.logits(hidden[offset + position : offset + stop])
                targets = self.state.token_ids[row, position + 1 : stop + 1].long()
                slices.append((row, position + 1, token_logprobs(logits, targets, alternatives)))
        return tuple(slices)

    def _upload(self, array: Int32Array) -> torch.Tensor:
        return torch.tensor(array, device=self.state.device)


def _claimed_lengths(plan: StepPlan | None, batch: _Batch) -> dict[int, int]:
    """By row how many positions are computed once a forward pass is: of its rows, and of those that `plan` starts."""
    starts = plan.starts if plan is not None else ()
    lengths = {start.row: start.num_computed_tokens for start in starts}
    lengths |= {run.row: run.first_position + run.num_tokens for run in batch.prefills}
    lengths |= zip(batch.decode_rows.tolist(), (batch.decode_positions + 1).tolist(), strict=True)
    return lengths


def to_output(tensors: SubStepTensors, state: BatchState, device_ns: int, idle_ns: int) -> SubStepOutput:
    """Copies what a sub-step computed to the host."""
    prompt_logprobs = tuple(
        PromptLogprobs(row, first_position, *judged.to_host())
        for row, first_position, judged in tensors.prompt_logprobs
    )
    if tensors.sampled is None:
        none = np.empty(0, np.int32)
        return SubStepOutput(
            none, none, none, prompt_logprobs=prompt_logprobs, device_ns=device_ns, idle_ns=idle_ns
        )
    rows = tensors.rows
    statuses: Int32Array = tensors.sampled.statuses.cpu().numpy()
    token_ids: Int32Array = tensors.sampled.token_ids.int().cpu().numpy()
    succeeded = statuses == RowStatus.OK
    gaps: Float32Array = np.empty(0, np.float32)
    if tensors.sampled.gaps is not None:
        reported = state.needs.reports_gap[rows] & succeeded
        gaps = np.where(reported, tensors.sampled.gaps.cpu().numpy(), np.float32(np.nan))
    return SubStepOutput(
        rows=rows,
        token_ids=np.where(succeeded, token_ids, np.int32(-1)),
        row_statuses=statuses,
        logprobs=_row_logprobs(tensors, state, succeeded),
        prompt_logprobs=prompt_logprobs,
        gaps=gaps,
        device_ns=device_ns,
        idle_ns=idle_ns,
    )


def _row_logprobs(
    tensors: SubStepTensors, state: BatchState, succeeded: np.ndarray
) -> tuple[RowLogprobs, ...]:
    """Those of the rows that asked and sampled a token, each cut to its own number of alternatives."""
    if tensors.logprobs is None:
        return ()
    own, ranks, ids, alternatives = tensors.logprobs.to_host()
    wanted = state.needs.logprobs[tensors.rows]
    return tuple(
        RowLogprobs(
            row=int(tensors.rows[index]),
            token_logprob=float(own[index]),
            token_rank=int(ranks[index]),
            alternative_ids=ids[index, : wanted[index]],
            alternative_logprobs=alternatives[index, : wanted[index]],
        )
        for index in np.flatnonzero(succeeded & (wanted >= 0)).tolist()
    )
