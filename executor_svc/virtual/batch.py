"""The virtual device's state and arithmetic: rows, their seeds, and what a sub-step samples."""

import numpy as np

from executor_svc.plan import (
    Prefill,
    PromptLogprobs,
    RowLogprobs,
    RowSampling,
    RowStatus,
    StartRow,
    Step,
    SubStepOutput,
)
from executor_svc.runner import RunnerLimits
from executor_svc.virtual.kv_checker import KvChecker
from executor_svc.virtual.tokens import VirtualModel
from nanoserve.arrays import Float32Array, Int32Array

_PROMPT_SLICE = 256
_GAP = 1.0


class VirtualBatch:
    """Applies validated steps in order. `checked` turns the adversarial KV cache on.

    Masks and min_tokens are obeyed; temperature, penalties and the like change nothing, there being no logits.
    """

    def __init__(self, limits: RunnerLimits, model: VirtualModel, *, checked: bool) -> None:
        self._model = model
        self._kv = KvChecker(limits) if checked else None
        self._seeds = np.zeros(limits.max_num_seqs, np.uint64)
        self._starts: dict[int, StartRow] = {}
        # Rows that ask for log-probabilities, gaps or min_tokens: the others need no look at their parameters.
        self._special = np.zeros(limits.max_num_seqs, np.bool_)

    def reset(self, *, keep_kv: bool = True) -> None:
        """Clears all rows; without `keep_kv` poisons every KV block."""
        self._starts.clear()
        self._special[:] = False
        if self._kv is not None:
            self._kv.reset(keep_kv=keep_kv)

    def compute(self, step: Step, sub_step: int) -> SubStepOutput:
        """Runs a sub-step: StepFailure DATA_LOSS where attention would read what the row never wrote."""
        plan = step.plan
        if sub_step == 0:
            self._change_rows(step)
        active = plan.decode_row_steps > sub_step
        decode_rows, decode_positions = plan.decode_rows, step.decode_positions
        if not active.all():
            decode_rows, decode_positions = decode_rows[active], decode_positions[active]
        decode_positions = decode_positions + np.int32(sub_step)
        if self._kv is not None:
            self._use_kv(self._kv, plan.prefills, decode_rows, decode_positions)
        ending = [prefill for prefill in plan.prefills if prefill.samples]
        prefill_ends = [prefill.first_position + prefill.num_tokens for prefill in ending]
        rows = np.concatenate([np.array([prefill.row for prefill in ending], np.int32), decode_rows])
        positions = np.concatenate([np.array(prefill_ends, np.int32), decode_positions + np.int32(1)])
        output = self._sample(step, rows, positions)
        if self._kv is not None:
            for row, token in zip(rows.tolist(), output.token_ids.tolist(), strict=True):
                self._kv.append_token(row, token)
        return output

    def _change_rows(self, step: Step) -> None:
        plan, kv = step.plan, self._kv
        for row in plan.release_rows.tolist():
            del self._starts[row]
            self._special[row] = False
            if kv is not None:
                kv.release(row)
        for start in plan.starts:
            sampling = start.sampling
            reports = sampling.logprobs is not None or sampling.prompt_logprobs is not None
            self._starts[start.row] = start
            self._seeds[start.row] = start.seed
            self._special[start.row] = reports or sampling.report_gap or sampling.min_tokens > 0
            if kv is not None:
                kv.start(start)
        if kv is not None:
            for row, block in zip(plan.new_block_rows.tolist(), plan.new_block_ids.tolist(), strict=True):
                kv.append_block(row, block)

    @staticmethod
    def _use_kv(
        kv: KvChecker, prefills: tuple[Prefill, ...], decode_rows: Int32Array, positions: Int32Array
    ) -> None:
        """All writes of the step, then all reads: a prefix that one row fills may be read by another."""
        for prefill in prefills:
            kv.write(prefill.row, prefill.first_position, prefill.num_tokens)
        for row, position in zip(decode_rows.tolist(), positions.tolist(), strict=True):
            kv.write(row, position, 1)
        for prefill in prefills:
            kv.check(prefill.row)
        for row in decode_rows.tolist():
            kv.check(row)

    def _sample(self, step: Step, rows: Int32Array, positions: Int32Array) -> SubStepOutput:
        tokens = self._model.tokens(self._seeds[rows], positions)
        statuses = np.full(len(rows), RowStatus.OK, np.int32)
        masks = {mask.row: mask.allowed(self._model.vocab_size) for mask in step.plan.masks}
        special = self._special[rows]
        for index in np.flatnonzero(special).tolist() if not masks else range(len(rows)):
            row, position = int(rows[index]), int(positions[index])
            tokens[index] = self._restrict(row, position, int(tokens[index]), masks.get(row))
            if tokens[index] < 0:
                statuses[index] = RowStatus.NO_TOKEN_ALLOWED
        prompt = tuple(entry for prefill in step.plan.prefills for entry in self._prompt_logprobs(prefill))
        if not special.any():
            return SubStepOutput(rows, tokens, statuses, prompt_logprobs=prompt)
        return SubStepOutput(
            rows, tokens, statuses, self._logprobs(rows, tokens), prompt, self._gaps(rows, tokens)
        )

    def _restrict(self, row: int, position: int, token: int, allowed: np.ndarray | None) -> int:
        """The first token allowed from `token` on, going round; -1 where none is."""
        start = self._starts[row]
        forbids_end = position - start.num_prompt_tokens < start.sampling.min_tokens
        if allowed is None and not forbids_end:
            return token
        choice = np.ones(self._model.vocab_size, np.bool_) if allowed is None else allowed.copy()
        if forbids_end:
            choice[start.sampling.end_token_ids] = False
        candidates = np.flatnonzero(np.roll(choice, -token))
        return (token + int(candidates[0])) % self._model.vocab_size if len(candidates) else -1

    def _sampling(self, row: int) -> RowSampling:
        return self._starts[row].sampling

    def _alternatives(self, tokens: Int32Array, count: int) -> tuple[Int32Array, Float32Array]:
        """The token itself and the ids after it, going round, at -1, -2, ...: both [len(tokens), count]."""
        ids = (tokens[:, None] + np.arange(count, dtype=np.int32)) % self._model.vocab_size
        logprobs = np.tile(-1.0 - np.arange(count, dtype=np.float32), (len(tokens), 1))
        return ids.astype(np.int32), logprobs.astype(np.float32)

    def _logprobs(self, rows: Int32Array, tokens: Int32Array) -> tuple[RowLogprobs, ...]:
        entries = []
        for index, row in enumerate(rows.tolist()):
            count = self._sampling(row).logprobs if self._special[row] else None
            if count is not None and tokens[index] >= 0:
                ids, logprobs = self._alternatives(tokens[index : index + 1], count)
                entries.append(RowLogprobs(row, -1.0, 1, ids[0], logprobs[0]))
        return tuple(entries)

    def _prompt_logprobs(self, prefill: Prefill) -> list[PromptLogprobs]:
        """Slices for the prompt positions that the run's logits judge: each judges the position after it."""
        start = self._starts[prefill.row]
        count = start.sampling.prompt_logprobs
        if count is None:
            return []
        end = min(prefill.first_position + prefill.num_tokens + 1, start.num_prompt_tokens)
        slices = []
        for first in range(prefill.first_position + 1, end, _PROMPT_SLICE):
            tokens = start.token_ids[first : min(first + _PROMPT_SLICE, end)]
            ids, logprobs = self._alternatives(tokens, count)
            own = np.full(len(tokens), -1.0, np.float32)
            ranks = np.ones(len(tokens), np.int32)
            slices.append(PromptLogprobs(prefill.row, first, own, ranks, ids, logprobs))
        return slices

    def _gaps(self, rows: Int32Array, tokens: Int32Array) -> Float32Array:
        asked = [bool(self._special[row]) and self._sampling(row).report_gap for row in rows.tolist()]
        if not any(asked):
            return np.empty(0, np.float32)
        return np.where(np.array(asked) & (tokens >= 0), _GAP, np.nan).astype(np.float32)
