"""Runs one sub-step of a step at a time, from the batch state to sampled tokens, on the thread that calls it.

On CUDA nothing here waits for the device, but for the check of `slot_tokens`.
"""

from collections.abc import Sequence

import numpy as np
import torch

from executor_svc.attention import AttentionContext
from executor_svc.batch import BatchState
from executor_svc.captured import DecodeSteps, MixedSteps
from executor_svc.forward import BatchShape, ForwardBatch, pack_batch
from executor_svc.logprobs import MAX_PROMPT_SLICE, TokenLogprobs, token_logprobs
from executor_svc.models.qwen import Backend, QwenForCausalLM
from executor_svc.outputs import SubStepTensors
from executor_svc.plan import Prefill, Step
from executor_svc.sampler import SampledTokens, SamplingRows, choose, choose_again
from executor_svc.slot_tokens import SlotTokens, claimed_lengths
from nanoserve.arrays import Int32Array

_NO_PREFILLS: tuple[Prefill, ...] = ()


class ModelRunner:
    """The model, what it is computed with, and the batch state."""

    def __init__(
        self,
        model: QwenForCausalLM,
        backend: Backend,
        state: BatchState,
        block_size: int,
        slot_tokens: SlotTokens | None = None,
    ) -> None:
        """With `slot_tokens` every step checks what its rows' KV slots hold."""
        self.model = model
        self.backend = backend
        self.state = state
        self.block_size = block_size
        self.slot_tokens = slot_tokens
        self.decode_steps: DecodeSteps | None = None
        """What steps without prefills run by; None: by the general way."""
        self.mixed_steps: MixedSteps | None = None
        """What steps with prefills run by, where they fit; None: none do."""

    def run(self, step: Step, sub_step: int) -> SubStepTensors:
        """Computes a sub-step and writes what it samples back to the batch state; the plan is applied already.

        StepFailure where `slot_tokens` finds a slot that holds another token than its row claims.
        """
        plan = step.plan
        prefills = plan.prefills if sub_step == 0 else _NO_PREFILLS
        rows, positions = _decode_rows(step, sub_step)
        masks = {mask.row: mask.allowed_bits for mask in plan.masks}
        sampling = SamplingRows(self.state, rows, positions + np.int32(1), masks)
        if self.decode_steps is not None and len(rows) and not prefills:
            tensors = self._decode(self.decode_steps, sampling)
        else:
            tensors = self._compute(prefills, sampling)
        if self.slot_tokens is not None:
            starts = plan.starts if sub_step == 0 else ()
            self.slot_tokens.check(self.state, claimed_lengths(starts, prefills, rows, positions))
        return tensors

    def forward(self, batch: ForwardBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs the model over a batch: hidden states [num_tokens, hidden_size], and positions int32 [num_tokens].

        Lengths stay as they are. Everything that a CUDA graph of it must find again is in `batch` and in the state.
        """
        state = self.state
        token_ids, positions, slots = self.backend.ops.gather_inputs(
            batch.token_rows,
            batch.token_offsets,
            state.lengths,
            state.token_ids,
            state.block_tables,
            self.block_size,
        )
        context = AttentionContext(
            slot_mapping=slots,
            block_tables=state.block_tables,
            lengths=state.lengths,
            decode_rows=batch.decode_rows,
            prefill_rows=batch.prefill_rows,
            prefill_starts=batch.prefill_starts,
        )
        if self.slot_tokens is not None:
            self.slot_tokens.write(slots, token_ids)
        return self.model(token_ids, positions, self.backend, context), positions

    def forward_step(self, batch: ForwardBatch, hidden: torch.Tensor) -> None:
        """A forward pass into `hidden`, [num_tokens, hidden_size], after which the rows are longer."""
        hidden.copy_(self.forward(batch)[0])
        self.state.advance(batch.segment_rows, batch.segment_counts)

    def decode_step(self, batch: ForwardBatch, logits: torch.Tensor, results: torch.Tensor) -> None:
        """A whole decode step of a batch without prefills, into `logits` and `results`: see DecodeSteps."""
        state, rows, ops = self.state, batch.decode_rows, self.backend.ops
        hidden, positions = self.forward(batch)
        self.model.logits(hidden, logits)
        token_ids, statuses = ops.sample_rows(
            logits, rows, positions + 1, state.params.temperature, state.params.seeds
        )
        ops.advance_rows(rows, token_ids, state.lengths, state.token_ids)
        torch.stack((token_ids, statuses), out=results)

    def sample_step(
        self,
        last_tokens: torch.Tensor,
        rows: torch.Tensor,
        positions: torch.Tensor,
        hidden: torch.Tensor,
        logits: torch.Tensor,
        results: torch.Tensor,
    ) -> None:
        """Samples behind some tokens of `hidden`, into `logits` and `results`: see MixedSteps.sample."""
        state, params = self.state, self.state.params
        self.model.logits(hidden[last_tokens], logits)
        token_ids, statuses = self.backend.ops.sample_rows(
            logits, rows, positions, params.temperature, params.seeds
        )
        state.put_tokens(rows, positions, token_ids)
        torch.stack((token_ids, statuses), out=results)

    def _decode(self, decode_steps: DecodeSteps, sampling: SamplingRows) -> SubStepTensors:
        """A step of decode rows."""
        results, logits = decode_steps.run(sampling.rows)
        return self._tensors(sampling, self._choose_special(results, logits, sampling), logits)

    def _choose_special(
        self, results: torch.Tensor, logits: torch.Tensor, sampling: SamplingRows
    ) -> SampledTokens:
        """What all rows sampled the fast way, but for those that it cannot sample: these are sampled again."""
        sampled, special = SampledTokens(results, None), sampling.special()
        if special.any():
            sampled = choose_again(logits, sampling, special, sampled, self.backend.ops)
            self._put_tokens(sampling, sampled)
        return sampled

    def _compute(self, prefills: Sequence[Prefill], decoding: SamplingRows) -> SubStepTensors:
        """Any step. Rows that sample: prefills that end their known tokens, then `decoding`."""
        if not (len(decoding.rows) or prefills):
            return SubStepTensors(decoding.rows)
        mixed_steps = self.mixed_steps
        static = None if mixed_steps is None else mixed_steps.run(decoding.rows, prefills)
        hidden = self._forward_exactly(decoding.rows, prefills) if static is None else static
        num_decodes = len(decoding.rows)
        prompt_logprobs = self._judge_prompts(prefills, hidden[num_decodes:])
        last, sampling = _sampling(prefills, decoding, num_decodes)
        if not len(last):
            return SubStepTensors(sampling.rows, prompt_logprobs=prompt_logprobs)
        if mixed_steps is not None and static is not None:
            results, logits = mixed_steps.sample(last, sampling.rows, sampling.positions)
            sampled = self._choose_special(results, logits, sampling)
        else:
            logits = self.model.logits(hidden[self.state.upload(last)])
            sampled = choose(logits, sampling, self.backend.ops)
            self._put_tokens(sampling, sampled)
        return self._tensors(sampling, sampled, logits, prompt_logprobs)

    def _forward_exactly(self, decode_rows: Int32Array, prefills: Sequence[Prefill]) -> torch.Tensor:
        """The forward pass of a batch without padding, after which its rows are longer: [num_tokens, hidden_size]."""
        shape = BatchShape.of(decode_rows, prefills)
        packed = pack_batch(shape, decode_rows, prefills, self.state.dummy_row)
        batch = ForwardBatch.of(shape, self.state.upload(packed))
        hidden, _ = self.forward(batch)
        self.state.advance(batch.segment_rows, batch.segment_counts)
        return hidden

    def _put_tokens(self, sampling: SamplingRows, sampled: SampledTokens) -> None:
        """Writes sampled tokens back to the rows, and counts them for the penalties."""
        state, num_rows = self.state, len(sampling.rows)
        token_ids = sampled.token_ids[:num_rows]
        state.put_tokens(state.upload(sampling.rows), state.upload(sampling.positions), token_ids)
        state.count(sampling.rows, token_ids)

    def _tensors(
        self,
        sampling: SamplingRows,
        sampled: SampledTokens,
        logits: torch.Tensor,
        prompt_logprobs: tuple[tuple[int, int, TokenLogprobs], ...] = (),
    ) -> SubStepTensors:
        """With the log-probabilities of the sampled tokens, where a row asks."""
        needs, rows = self.state.needs, sampling.rows
        wanted, logprobs = needs.logprobs[rows], None
        asking = np.flatnonzero(wanted >= 0)
        if len(asking):
            chosen = self.state.upload(asking)
            full = self.backend.ops.full_logits(logits[chosen])
            logprobs = token_logprobs(full.float(), sampled.token_ids[chosen].long(), int(wanted.max()))
        return SubStepTensors(
            rows=rows,
            sampled=sampled,
            wanted_logprobs=wanted if len(asking) else None,
            reports_gap=None if sampled.gaps is None else needs.reports_gap[rows],
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )

    def _judge_prompts(
        self, prefills: Sequence[Prefill], hidden: torch.Tensor
    ) -> tuple[tuple[int, int, TokenLogprobs], ...]:
        """Log-probabilities of the prompt positions that this step's logits judge, for the rows that ask.

        Position p is judged at p - 1: a run's last logits judge the first token of the next run, known already.
        `hidden` are the states of the prefills' tokens, [at least as many, hidden_size].
        """
        needs, slices, first_token = self.state.needs, [], 0
        for run in prefills:
            row, alternatives = run.row, int(needs.prompt_logprobs[run.row])
            offset, first_token = first_token - run.first_position, first_token + run.num_tokens
            if alternatives < 0:
                continue
            end = min(run.first_position + run.num_tokens, int(needs.num_prompt_tokens[row]) - 1)
            for position in range(run.first_position, end, MAX_PROMPT_SLICE):
                stop = min(position + MAX_PROMPT_SLICE, end)
                part = self.model.logits(hidden[offset + position : offset + stop])
                logits = self.backend.ops.full_logits(part).float()
                targets = self.state.token_ids[row, position + 1 : stop + 1].long()
                slices.append((row, position + 1, token_logprobs(logits, targets, alternatives)))
        return tuple(slices)


def _decode_rows(step: Step, sub_step: int) -> tuple[Int32Array, Int32Array]:
    """The rows that decode in a sub-step, and the positions that they compute."""
    plan = step.plan
    if plan.num_decode_steps == 1:
        return plan.decode_rows, step.decode_positions
    going_on = plan.decode_row_steps > sub_step
    return plan.decode_rows[going_on], step.decode_positions[going_on] + np.int32(sub_step)


def _sampling(
    prefills: Sequence[Prefill], decoding: SamplingRows, first_prefill: int
) -> tuple[Int32Array, SamplingRows]:
    """The rows that sample, in the order of their results, and the index of the token that each samples behind.

    `first_prefill` is the index of the first prefill's first token.
    """
    ends = first_prefill + np.cumsum([run.num_tokens for run in prefills], dtype=np.int32)
    ending = [(int(end), run) for end, run in zip(ends, prefills, strict=True) if run.samples]
    last = [end - 1 for end, _ in ending]
    rows = [run.row for _, run in ending]
    positions = [run.first_position + run.num_tokens for _, run in ending]
    return (
        np.concatenate([np.array(last, np.int32), np.arange(len(decoding.rows), dtype=np.int32)]),
        SamplingRows(
            decoding.state,
            np.concatenate([np.array(rows, np.int32), decoding.rows]),
            np.concatenate([np.array(positions, np.int32), decoding.positions]),
            decoding.masks,
        ),
    )
