"""Takes results in: which of a plan's rows still belong to whom, what they got, and whom it ends."""

import numpy as np
from numpy.typing import NDArray

from scheduler_svc.core.config import CoreConfig
from scheduler_svc.core.draft import PlannedStep, SteadyStep
from scheduler_svc.core.request import Finish, Int64Array
from scheduler_svc.core.state import State
from scheduler_svc.core.step import StepOutputs, StepResult

_NONE = int(Finish.NONE)  # comparing an array with an IntEnum costs a microsecond


class Confirmer:
    """Takes in the results of one session, each known to answer its plan."""

    def __init__(self, config: CoreConfig, state: State) -> None:
        self._config, self._state = config, state
        self._quiet: tuple[StepResult, int] | None = None
        """A result found to end nothing, and the version of the row table then; until it is taken in."""

    def ends_nothing(self, planned: PlannedStep, result: StepResult) -> bool:
        """Whether all that `confirm` changes is the tokens known: each row still has its sequence, which goes on."""
        if result.failed is not None or self._state.policy.pads or not self._config.enable_kv_cache:
            return False
        table, steady = self._state.rows, planned.steady
        if self._quiet is not None and self._quiet[0] is result and self._quiet[1] == table.version:
            return True
        if steady is not None and steady.batch.version == table.version:
            rows, goes_on = steady.batch.rows, not steady.reaches_max_len
        else:
            rows, incarnations = planned.sampling_rows(result.sub_step)
            goes_on = table.incarnation[rows].tobytes() == incarnations.tobytes() and not np.count_nonzero(
                table.num_known[rows] + 1 >= table.max_len[rows]
            )
        if not goes_on or len(table.ended(rows, result.token_ids)):
            return False
        self._quiet = (result, table.version)
        return True

    def confirm(self, planned: PlannedStep, result: StepResult) -> StepOutputs:
        """Takes in a sub-step's result; returns the tokens it makes known."""
        # Before any sequence ends by this very result.
        prompt_slices = self._judge_prompts(planned, result)
        if (
            planned.steady is not None
            and planned.steady.batch.version == self._state.rows.version
            and self.ends_nothing(planned, result)
        ):
            outputs = self._confirm_steady(planned.steady, result)
        else:
            outputs = self._confirm_any(planned, result)
        self._quiet = None
        return outputs._replace(prompt_slices=prompt_slices) if prompt_slices else outputs

    def _confirm_steady(self, steady: SteadyStep, result: StepResult) -> StepOutputs:
        """Takes in a token for each row of a steady batch, none of which ends."""
        batch, filled = steady.batch, steady.filled
        self._state.rows.append(batch.rows, batch.token_starts, steady.ends, result.token_ids)
        if len(filled):
            self._note_filled(batch.rows[filled], steady.ends[filled])
        self._state.counters.num_output_tokens += len(batch.rows)
        return StepOutputs(batch.sequence_ids, result.token_ids, batch.no_finishes, batch.indices)

    def _confirm_any(self, planned: PlannedStep, result: StepResult) -> StepOutputs:
        rows, incarnations = planned.sampling_rows(result.sub_step)
        live = self._state.rows.incarnation[rows] == incarnations
        indices = live.nonzero()[0]
        outputs = self._confirm_live(indices, rows[indices], result)
        if len(indices) < len(rows):
            departed = (~live).nonzero()[0]
            outputs = outputs.joined(self._confirm_departed(departed, incarnations[departed], result))
        return outputs

    def _confirm_live(
        self, indices: NDArray[np.intp], rows: NDArray[np.intp], result: StepResult
    ) -> StepOutputs:
        """Takes in the tokens of rows that still belong to the sequences the plan was made for."""
        table = self._state.rows
        if self._state.policy.pads:
            padding = table.is_padding[rows]
            self._state.counters.num_padded_tokens += int(padding.sum())
            indices, rows = indices[~padding], rows[~padding]
        token_ids, sequence_ids = result.token_ids[indices], table.sequence_id[rows]
        finishes = np.zeros(len(rows), np.int8)  # Finish.NONE
        if result.failed is not None:
            finishes[result.failed[indices]] = Finish.FAILED
        sampled = (finishes == _NONE).nonzero()[0]
        good, good_tokens = rows[sampled], token_ids[sampled]
        num_known = table.confirm(good, good_tokens)
        finishes[sampled[num_known >= table.max_len[good]]] = Finish.LENGTH
        finishes[sampled[table.ended(good, good_tokens)]] = Finish.STOP
        # The last token's KV is not computed yet: a block is full when the tokens before it fill it.
        num_computed = num_known - 1
        full = (num_computed % self._state.limits.block_size == 0).nonzero()[0]
        if len(full):
            self._note_filled(good[full], num_computed[full])
        ended = finishes.nonzero()[0]
        if len(ended):
            self._end(rows[ended], finishes[ended])
        if not self._config.enable_kv_cache:
            for row in rows[finishes == Finish.NONE]:
                self._state.recompute(table.at(row))
        self._state.counters.num_output_tokens += len(good)
        return StepOutputs(sequence_ids, token_ids, finishes, indices)

    def _note_filled(self, rows: NDArray[np.intp], num_computed: Int64Array) -> None:
        """Tells the prefix cache of rows that so many computed tokens have just filled a block of."""
        sequences = [self._state.rows.at(row) for row in rows.tolist()]
        tokens = self._state.rows.block_tokens(rows, num_computed)
        num_blocks = (num_computed // self._state.limits.block_size).tolist()
        self._state.cache.note_filled(sequences, num_blocks, tokens)

    def _end(self, rows: NDArray[np.intp], finishes: NDArray[np.int8]) -> None:
        """Ends the sequences of rows, each in the way given."""
        sequences = [self._state.rows.at(row) for row in rows.tolist()]
        for sequence, finish in zip(sequences, finishes.tolist(), strict=True):
            if finish == Finish.FAILED:
                # What made its logits worthless may be in the blocks that it read or wrote.
                self._state.cache.drop(sequence.block_table)
        for sequence in sequences:
            self._state.end(sequence)

    def _confirm_departed(
        self, indices: NDArray[np.intp], incarnations: NDArray[np.int64], result: StepResult
    ) -> StepOutputs:
        """Takes in tokens of preempted sequences, which wait; those of ended ones are dropped."""
        kept, sequence_ids, finishes = [], [], []
        for index, incarnation in zip(indices, incarnations, strict=True):
            sequence = self._state.departed.get(int(incarnation))
            if sequence is None:
                self._state.counters.num_late_tokens += 1
                continue
            finish = Finish.FAILED
            if result.failed is None or not result.failed[index]:
                finish = sequence.append(int(result.token_ids[index]))
                self._state.counters.num_output_tokens += 1
            if finish is not Finish.NONE:
                self._state.remove(sequence)
            kept.append(index)
            sequence_ids.append(sequence.sequence_id)
            finishes.append(finish)
        where = np.array(kept, np.intp)
        return StepOutputs(
            np.array(sequence_ids, np.int64), result.token_ids[where], np.array(finishes, np.int8), where
        )

    def _judge_prompts(self, planned: PlannedStep, result: StepResult) -> list[tuple[int, int, int]]:
        """Which of the result's prompt slices are news, and how many positions of each are not."""
        news = []
        for index, piece in enumerate(result.prompt_slices):
            sequence = self._state.held(planned, piece.row)
            if sequence is None:
                continue
            num_before = sequence.num_prompt_positions_judged - (piece.first_position - 1)
            if 0 <= num_before < piece.num_positions:
                sequence.num_prompt_positions_judged += piece.num_positions - num_before
                news.append((sequence.sequence_id, index, num_before))
        return news
