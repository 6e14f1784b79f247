"""Fills the draft of a step: decoding rows first, then prefills under way, then sequences that wait."""

import numpy as np
from numpy.typing import NDArray

from scheduler_svc.core.config import CoreConfig
from scheduler_svc.core.draft import Draft
from scheduler_svc.core.limits import MAX_START_BYTES
from scheduler_svc.core.request import ONE, Int32Array, Int64Array
from scheduler_svc.core.sequence import Sequence
from scheduler_svc.core.state import State
from scheduler_svc.core.steady import SteadyBatch
from scheduler_svc.core.step import PrefillChunk, SequenceStart


class Planner:
    """Plans the steps of one session."""

    def __init__(self, config: CoreConfig, state: State, first_incarnation: int) -> None:
        """Starts are numbered from `first_incarnation` on."""
        self._config, self._state, self._limits = config, state, state.limits
        self.next_incarnation = first_incarnation
        self._blocked = (0, 0)
        """The waiting sequence that last found no room, and the blocks that were available then."""
        self._batch: SteadyBatch | None = None
        """What decodes steadily, if the last step may be gone on with."""
        self._last_version = 0
        """Of the row table, when decodes were last planned from it: a batch is made where they are twice the same."""

    def fill(self, draft: Draft, num_decode_steps: int) -> None:
        """Plans a step, with at most `num_decode_steps` decode sub-steps; leaves the draft empty for nothing to do."""
        policy, table = self._state.policy, self._state.rows
        num_decode_steps = min(num_decode_steps, self._limits.max_num_decode_steps)
        if len(self._state.waiting):
            num_decode_steps = 1  # prefills may join, and must not wait for several steps
        policy.begin_step(self._state.num_on_rows)
        if num_decode_steps > 1 or not self._go_on(draft):
            num_prefilling = len(table.prefilling())
            self._plan_decodes(draft, num_decode_steps, num_prefilling)
            if num_prefilling:
                self._plan_prefills(draft)
        self._admit(draft)
        policy.end_admission(out_of_tokens=draft.num_tokens >= self._limits.max_num_batched_tokens)
        if draft.num_tokens == 0:
            # It may only now have turned out that a static batch is complete.
            self._plan_decodes(draft, num_decode_steps, len(table.prefilling()))

    def _go_on(self, draft: Draft) -> bool:
        """Plans one more step of the batch that decodes steadily; False where there is none that can go on."""
        batch, table = self._batch, self._state.rows
        if batch is None or batch.version != table.version or not batch.num_steps_left:
            return False
        ends = batch.ends + ONE
        full = batch.filled()
        if len(full):
            rows = batch.rows[full]
            short = (ends[full] > table.capacity[rows]).nonzero()[0]
            if len(short) > self._state.cache.pool.num_available:
                return False  # somebody has to be preempted
            if len(short):
                self._grow(draft, rows[short], table.ones[: len(short)])
        batch.advance(ends)
        table.num_planned[batch.rows] = ends
        table.last_step[batch.rows] = draft.step_id
        draft.decode_rows, draft.decode_row_steps, draft.decode_ends = batch.rows, batch.steps, ends
        draft.batch = batch
        return True

    def may_start_or_preempt(self, step_id: int) -> bool:
        """Whether the next plan may start or preempt sequences, if the results up to this step's are in by then.

        A look-up of prefixes finds what results told of, and a preempted sequence waits for its results: no other part
        of a plan depends on which have come, as long as none ends anything.
        """
        table, available = self._state.rows, self._state.cache.pool.num_available
        if available < self._state.num_on_rows and available < table.num_at_capacity():
            return True
        head = self._state.waiting.head() if table.num_free else None
        return head is not None and head.last_step <= step_id and not self._is_blocked(head)

    def _plan_decodes(self, draft: Draft, num_decode_steps: int, num_prefilling: int) -> None:
        table, self._batch = self._state.rows, None
        if not self._config.enable_kv_cache or not self._state.policy.may_decode(num_prefilling):
            return
        rows = table.decodable()
        if num_prefilling or (table.num_guided and table.is_guided[rows].any()):
            num_decode_steps = 1
        steps = table.ones[: len(rows)]
        if num_decode_steps > 1:
            steps = self._several_steps(rows, num_decode_steps)
        ends = table.num_planned[rows] + steps
        short = (ends > table.capacity[rows]).nonzero()[0]
        if len(short):
            self._grow(draft, rows[short], self._lacking(rows[short], ends[short]))
            still = (table.incarnation[rows] != 0).nonzero()[0]
            rows, steps, ends = rows[still], steps[still], ends[still]
        if not len(rows):
            return
        table.num_planned[rows] = ends
        table.last_step[rows] = draft.step_id
        draft.decode_rows, draft.decode_row_steps = rows, steps
        draft.decode_ends = ends
        if num_decode_steps > 1:
            draft.num_decode_steps = int(steps.max())
        elif not num_prefilling and not table.num_guided and table.version == self._last_version:
            self._batch = SteadyBatch(table, rows, ends, self._limits.block_size)
        self._last_version = table.version

    def _several_steps(self, rows: NDArray[np.intp], num_decode_steps: int) -> Int32Array:
        """The steps that each decodable row takes: as many as asked if there are blocks for all, else one."""
        table = self._state.rows
        planned = table.num_planned[rows]
        left: Int64Array = table.max_len[rows] - 1 - planned
        steps: Int32Array = np.minimum(num_decode_steps, left).astype(np.int32)
        if self._lacking(rows, planned + steps).sum() > self._state.cache.pool.num_available:
            return table.ones[: len(rows)]
        return steps

    def _lacking(self, rows: NDArray[np.intp], ends: Int64Array) -> Int64Array:
        """How many blocks each row lacks for its first `ends` tokens."""
        spare: Int64Array = (self._state.rows.capacity[rows] - ends) // self._limits.block_size
        return np.maximum(-spare, 0)

    def _grow(self, draft: Draft, rows: NDArray[np.intp], lacking: Int32Array | Int64Array) -> None:
        """Gives each row the blocks it lacks, preempting the worst sequences while there are not enough for all."""
        table, cache = self._state.rows, self._state.cache
        while (num_blocks := int(lacking.sum())) > cache.pool.num_available:
            self._state.preempt(max(table.running(), key=lambda running: running.rank))
            still = table.incarnation[rows] != 0
            rows, lacking = rows[still], lacking[still]
        blocks = cache.allocate(num_blocks)
        owners = rows.repeat(lacking).tolist()
        for row, block in zip(owners, blocks, strict=True):
            table.at(row).block_table.append(block)
        table.capacity[rows] += lacking * self._limits.block_size
        draft.new_block_rows, draft.new_block_ids = owners, blocks

    def _plan_prefills(self, draft: Draft) -> None:
        """Goes on with the prefills under way, best rank first."""
        sequences = [self._state.rows.at(row) for row in self._state.rows.prefilling()]
        for sequence in sorted(sequences, key=lambda sequence: sequence.rank):
            if draft.num_tokens < self._limits.max_num_batched_tokens:
                self._plan_chunk(draft, sequence)

    def _plan_chunk(self, draft: Draft, sequence: Sequence) -> None:
        """Plans as much of a prefill as the step has tokens left for, which is at least one."""
        rows, row = self._state.rows, sequence.row
        first, end = int(rows.num_planned[row]), int(rows.prefill_end[row])
        num_tokens = min(end - first, self._limits.max_num_batched_tokens - draft.num_tokens)
        rows.num_planned[row] = first + num_tokens
        rows.last_step[row] = draft.step_id
        draft.prefills.append(PrefillChunk(row, first, num_tokens, samples=first + num_tokens == end))
        draft.num_prefill_tokens += num_tokens
        tokens = rows.token_bytes(row, first + num_tokens)
        draft.entries += self._state.cache.register_planned(sequence, tokens)

    def _admit(self, draft: Draft) -> None:
        """Starts waiting sequences in order, until one cannot be started now."""
        while self._state.rows.num_free and draft.num_tokens < self._limits.max_num_batched_tokens:
            sequence = self._state.waiting.head()
            if sequence is None or sequence.last_step > self._state.last_result or sequence.lacks_mask:
                return
            if not self._state.policy.may_start(self._state.num_on_rows):
                return
            num_known = len(sequence.token_ids)
            num_bytes = draft.num_start_bytes + self._limits.start_bytes(sequence.request, num_known)
            if self._is_blocked(sequence) or num_bytes > MAX_START_BYTES:
                return
            hits = self._state.cache.find_hits(sequence)
            num_left = num_known - len(hits) * self._limits.block_size
            budget = self._limits.max_num_batched_tokens - draft.num_tokens
            if not self._config.enable_chunked_prefill and num_left > budget:
                return
            # With room to grow by a token, so that a preempted sequence does not come back only to be preempted.
            if not self._state.cache.has_room(hits, min(num_known + 1, sequence.max_len - 1)):
                self._blocked = (sequence.sequence_id, self._state.cache.pool.num_available)
                return
            self._state.waiting.pop()
            draft.num_start_bytes = num_bytes
            self._start(draft, sequence, hits)
            self._plan_chunk(draft, sequence)

    def _is_blocked(self, sequence: Sequence) -> bool:
        """Whether this sequence found no room when there was at least as much as now: spares the look-up."""
        sequence_id, num_available = self._blocked
        return sequence_id == sequence.sequence_id and self._state.cache.pool.num_available <= num_available

    def _start(self, draft: Draft, sequence: Sequence, hits: list[int]) -> None:
        num_hit_tokens = len(hits) * self._limits.block_size
        self._state.cache.open(sequence, hits)
        self._state.rows.start(sequence, self.next_incarnation, num_hit_tokens)
        self.next_incarnation += 1
        draft.starts.append(SequenceStart.of(sequence, num_hit_tokens))
        sequence.was_started = True
        self._state.counters.num_prefix_query_tokens += len(sequence.token_ids)
        self._state.counters.num_prefix_hit_tokens += num_hit_tokens
