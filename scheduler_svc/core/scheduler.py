"""The scheduler: which tokens the executor computes next, in which blocks, and what its results mean.

Theory of operation. `schedule` plans a step from what has been planned before, `update` takes in what a result
confirms, and up to `pipeline_depth` plans are under way between the two. A plan never assumes a result that has not
come, except that a decoding sequence has one more token for each step planned for it. So:

* An end (an end token, an abort) is learnt late. The sequence's row and blocks are given out at once: the executor
  applies plans in order, so whatever late writes are still under way come before any new owner's. Its late tokens are
  dropped: a result is resolved by the incarnations that its plan noted, never by who holds a row now.
* A preempted sequence takes the results still under way, and is not started again before the last of them.
* When memory runs out, the sequence of the worst rank (lowest priority, latest arrival) is preempted, until the one
  in need has its block or is itself the worst. The best-ranked sequence is never preempted, so work always advances:
  a request is accepted only if it fits when it is alone.
* A start takes blocks for all the tokens it knows, so only decoding grows and may preempt, and that comes before
  anything is started: nothing in a plan is preempted by it.

Pure and deterministic: the same calls with the same arguments give the same plans.
"""

from collections import deque

import numpy as np
from numpy.typing import NDArray

from scheduler_svc.core.config import CoreConfig
from scheduler_svc.core.draft import Draft, PlannedStep
from scheduler_svc.core.planner import Planner
from scheduler_svc.core.policy import POLICIES
from scheduler_svc.core.request import Finish, Int64Array, Request
from scheduler_svc.core.sequence import Sequence
from scheduler_svc.core.state import State
from scheduler_svc.core.stats import Stats
from scheduler_svc.core.step import ResultMismatch, Session, StepOutputs, StepPlan, StepResult

__all__ = ["CoreConfig", "Scheduler"]

_NONE = int(Finish.NONE)  # comparing an array with an IntEnum costs a microsecond


class Scheduler:
    """The state machine. `now` is in seconds, of any clock that never runs backwards."""

    def __init__(self, config: CoreConfig, session: Session) -> None:
        """Raises ValueError where a step could not even hold one token of every row."""
        self._config = config
        self._next_sequence_id = 1
        self._state = State(config, session, POLICIES[config.batching]())
        self._begin(first_incarnation=1)

    def _begin(self, first_incarnation: int) -> None:
        """Sets up what lasts as long as a session."""
        self._planner = Planner(self._config, self._state, first_incarnation)
        self._in_flight: deque[PlannedStep] = deque()
        """Plans sent, oldest first; the oldest is answered from `_next_sub_step` on."""
        self._next_step_id, self._next_sub_step = 1, 0

    @property
    def max_model_len(self) -> int:
        """Most tokens that prompt and output of a sequence may come to in this session."""
        return self._state.limits.max_model_len

    def add_request(self, request: Request, now: float) -> tuple[int, ...]:
        """Queues a request; returns the ids of its `n` sequences. RequestRefused where it could never be served."""
        self._state.limits.check(request)
        first = self._next_sequence_id
        self._next_sequence_id += request.n
        for index in range(request.n):
            sequence = Sequence(
                first + index,
                request,
                index,
                request.prompt_token_ids.astype(np.int32, copy=False),
                self._urgency(request, now),
            )
            self._state.live[sequence.sequence_id] = sequence
            self._state.waiting.push(sequence)
        return tuple(range(first, first + request.n))

    def abort(self, sequence_id: int) -> bool:
        """Ends a sequence; its row and blocks are free at once. False where it is not live."""
        sequence = self._state.live.get(sequence_id)
        if sequence is not None:
            self._state.remove(sequence)
        return sequence is not None

    def _urgency(self, request: Request, now: float) -> float:
        """Orders requests by class, and with aging by arrival too; the smaller goes first.

        Of two that wait, each gains a class in the same time: which goes first never changes while they do.
        """
        aging = self._config.priority_aging_seconds
        return (now / aging if aging else 0.0) - request.priority

    def schedule(self, now: float, num_decode_steps: int = 1) -> StepPlan | None:
        """Plans the next step, with at most `num_decode_steps` decode sub-steps.

        None where there is nothing to send: nothing to compute, or `pipeline_depth` plans unanswered.
        """
        if len(self._in_flight) >= self._state.limits.max_in_flight:
            return None
        draft = Draft(self._next_step_id)
        self._planner.fill(draft, num_decode_steps)
        if draft.num_tokens == 0:
            return None
        self._next_step_id += 1
        plan, planned = draft.finish(self._state.rows, self._state.to_release)
        self._state.to_release = []
        self._in_flight.append(planned)
        return plan

    def update(self, result: StepResult, now: float) -> StepOutputs:
        """Takes in a sub-step's result; returns the tokens it makes known.

        ResultMismatch, with nothing changed, where it is not what the oldest unanswered plan asks for next.
        """
        planned = self._in_flight[0] if self._in_flight else None
        if planned is None or not planned.is_answered_by(
            result, self._next_sub_step, self._state.limits.vocab_size
        ):
            raise ResultMismatch(
                f"step {result.step_id}.{result.sub_step} is not what the oldest plan asks for"
            )
        # Before any sequence ends by this very result.
        prompt_slices = self._judge_prompts(planned, result)
        rows, incarnations = planned.sampling_rows(result.sub_step)
        live = self._state.rows.incarnation[rows] == incarnations
        indices = live.nonzero()[0]
        outputs = self._confirm(indices, rows[indices], result)
        if len(indices) < len(rows):
            departed = (~live).nonzero()[0]
            outputs = outputs.joined(self._confirm_departed(departed, incarnations[departed], result))
        outputs.prompt_slices.extend(prompt_slices)
        self._next_sub_step += 1
        if result.last:
            self._close_step(planned)
        return outputs

    def _confirm(self, indices: NDArray[np.intp], rows: NDArray[np.intp], result: StepResult) -> StepOutputs:
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
        self._register_filled(good, num_known)
        ended = finishes.nonzero()[0]
        if len(ended):
            self._end(rows[ended], finishes[ended])
        if not self._config.enable_kv_cache:
            for row in rows[finishes == Finish.NONE]:
                self._state.recompute(table.at(row))
        self._state.counters.num_output_tokens += len(good)
        return StepOutputs(sequence_ids, token_ids, finishes, indices)

    def _register_filled(self, rows: NDArray[np.intp], num_known: Int64Array) -> None:
        """Enters in the prefix cache the blocks that rows, each knowing so many tokens now, have just filled."""
        # The last token's KV is not computed yet: a block is full when the tokens before it fill it.
        num_computed = num_known - 1
        block_size = self._state.limits.block_size
        full = (num_computed % block_size == 0).nonzero()[0]
        if len(full):
            rows, num_computed = rows[full], num_computed[full]
            sequences = map(self._state.rows.at, rows.tolist())
            tokens = self._state.rows.block_tokens(rows, num_computed)
            self._state.cache.register_filled(
                zip(sequences, (num_computed // block_size).tolist(), strict=True), tokens
            )

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

    def _close_step(self, planned: PlannedStep) -> None:
        self._in_flight.popleft()
        self._next_sub_step = 0
        self._state.last_result = planned.step_id
        self._state.counters.num_steps += 1
        for entry in planned.entries:
            entry.confirmed = True
        self._state.departed = {
            incarnation: sequence
            for incarnation, sequence in self._state.departed.items()
            if sequence.last_step > planned.step_id
        }

    def blame(self, step_id: int, rows: list[int]) -> list[int]:
        """Ids of the live sequences that an unanswered plan was made for on these rows; all its rows for none."""
        for planned in self._in_flight:
            if planned.step_id == step_id:
                held = (self._state.held(planned, row) for row in rows or planned.rows.tolist())
                return [sequence.sequence_id for sequence in held if sequence is not None]
        return []

    def reset(self, session: Session, now: float) -> list[int]:
        """Goes on with a new session: unanswered plans are void, every live sequence waits with its confirmed tokens.

        Cached prefixes live on where the executor is the same instance, but for those of unanswered plans. Returns
        the ids of sequences that cannot fit any more; they are forgotten. ValueError as for a first session.
        """
        lost = self._state.reopen(session)
        self._begin(self._planner.next_incarnation)
        return lost

    def reset_prefix_cache(self) -> int:
        """Forgets all cached prefixes; returns how many blocks had one. Running sequences keep their blocks."""
        blocks = self._state.cache.prefixes.blocks()
        self._state.cache.drop(blocks)
        return len(blocks)

    def stats(self) -> Stats:
        """Reads the load and the counters."""
        pool, counters = self._state.cache.pool, self._state.counters
        num_padding = int(self._state.rows.is_padding.sum())
        return Stats(
            num_running=self._state.num_on_rows - num_padding,
            num_padding=num_padding,
            num_unused_slots=self._state.rows.num_unused_slots(),
            num_waiting=len(self._state.waiting),
            num_total_blocks=pool.num_total,
            num_free_blocks=pool.num_free,
            num_cached_blocks=pool.num_cached,
            num_held_blocks=pool.num_held,
            num_plans_in_flight=len(self._in_flight),
            num_preemptions=counters.num_preemptions,
            num_prefix_query_tokens=counters.num_prefix_query_tokens,
            num_prefix_hit_tokens=counters.num_prefix_hit_tokens,
            num_steps=counters.num_steps,
            num_output_tokens=counters.num_output_tokens,
            num_late_tokens=counters.num_late_tokens,
            num_padded_tokens=counters.num_padded_tokens,
        )
