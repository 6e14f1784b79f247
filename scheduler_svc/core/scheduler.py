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

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler_svc.core.draft import Draft, PlannedStep
from scheduler_svc.core.kv_cache import KVCache
from scheduler_svc.core.policy import POLICIES
from scheduler_svc.core.prefix_cache import CacheEntry
from scheduler_svc.core.request import Finish, Request, RequestRefused
from scheduler_svc.core.rows import RowTable
from scheduler_svc.core.sequence import Sequence
from scheduler_svc.core.stats import Counters, Stats
from scheduler_svc.core.step import (
    PrefillChunk,
    ResultMismatch,
    SequenceStart,
    Session,
    StepOutputs,
    StepPlan,
    StepResult,
)
from scheduler_svc.core.waiting import WaitingQueue

# A plan is at most 2 MiB; this leaves room for what does not grow with the tokens of its starts.
_MAX_START_BYTES = 3 * 512 * 1024


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """How to schedule. The sizes of the executor come with the session."""

    max_num_batched_tokens: int
    """Most tokens a step computes: prefill tokens plus decoding sequences. The session's own limit counts too."""
    pipeline_depth: int = 2
    """Most plans sent and not yet answered."""
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    """Without it a prompt is computed in one step, and one that may come to more than fits in one is refused."""
    hash_seed: int = 0
    """64 random bits that seed the prefix keys."""
    priority_aging_seconds: float | None = None
    """Waiting this long is worth one class of priority. None: classes are strict."""
    batching: str = "continuous"
    """A name in POLICIES; all but "continuous" are for the study."""
    kv_allocation: str = "paged"
    """"contiguous" takes blocks for max_model_len at the start of each sequence, and shares none."""
    enable_kv_cache: bool = True
    """Without it every token is computed from the whole sequence; only for "naive"."""

    def __post_init__(self) -> None:
        if not self.enable_kv_cache and self.batching != "naive":
            raise ValueError(f"--no-kv-cache: is for --batching naive, not {self.batching}")


class Scheduler:
    """The state machine. `now` is in seconds, of any clock that never runs backwards."""

    _in_flight: deque[PlannedStep]
    """Plans sent, oldest first; the oldest is answered from `_next_sub_step` on."""
    _departed: dict[int, Sequence]
    """Preempted sequences with results under way, by the incarnation that they had."""
    _to_release: list[int]
    """Rows left since the last plan."""
    _next_step_id: int
    _next_sub_step: int
    _last_result: int
    """The last step whose last result came."""
    _blocked: tuple[int, int]
    """The waiting sequence that last found no room, and the blocks that were available then."""

    def __init__(self, config: CoreConfig, session: Session) -> None:
        """Raises ValueError where a step could not even hold one token of every row."""
        self._config = config
        self._counters = Counters()
        self._live: dict[int, Sequence] = {}
        self._next_sequence_id = self._next_incarnation = 1
        self._policy = POLICIES[config.batching]()
        self._open(session)
        self._cache = self._new_cache()

    @property
    def max_model_len(self) -> int:
        """Most tokens that a sequence may come to: the model's length, or what the cache holds.

        The KV of the last token is never computed, so it needs no slot.
        """
        cache_len = self._cache.pool.num_total * self._session.block_size + 1
        return min(self._session.max_model_len, cache_len)

    # Requests

    def add_request(self, request: Request, now: float) -> tuple[int, ...]:
        """Queues a request; returns the ids of its `n` sequences. RequestRefused where it could never be served."""
        self._check(request)
        first = self._next_sequence_id
        self._next_sequence_id += request.n
        for index in range(request.n):
            sequence = Sequence(
                first + index,
                request,
                index,
                request.prompt_token_ids.astype(np.int32),
                self._urgency(request, now),
            )
            self._live[sequence.sequence_id] = sequence
            self._waiting.push(sequence)
        return tuple(range(first, first + request.n))

    def abort(self, sequence_id: int) -> bool:
        """Ends a sequence; its row and blocks are free at once. False where it is not live."""
        sequence = self._live.get(sequence_id)
        if sequence is not None:
            self._remove(sequence)
        return sequence is not None

    def _urgency(self, request: Request, now: float) -> float:
        """Orders requests by class, and with aging by arrival too; the smaller goes first.

        Of two that wait, each gains a class in the same time: which goes first never changes while they do.
        """
        aging = self._config.priority_aging_seconds
        return (now / aging if aging else 0.0) - request.priority

    def _check(self, request: Request) -> None:
        num_prompt_tokens, limit = len(request.prompt_token_ids), self.max_model_len
        if not 1 <= num_prompt_tokens < limit:
            raise RequestRefused("prompt", f"has {num_prompt_tokens} tokens, must have 1 to {limit - 1}")
        room = limit - num_prompt_tokens
        if not 1 <= request.max_tokens <= room:
            raise RequestRefused(
                "stop.max_tokens",
                f"is {request.max_tokens}, must be 1 to {room} behind a prompt of {num_prompt_tokens} tokens",
            )
        longest = num_prompt_tokens + request.max_tokens - 1
        if not self._config.enable_chunked_prefill and longest > self._max_num_batched_tokens:
            raise RequestRefused(
                "prompt",
                f"may come to {longest} tokens in one step without chunked prefill,"
                f" must be at most {self._max_num_batched_tokens}",
            )

    # Planning

    def schedule(self, now: float, num_decode_steps: int = 1) -> StepPlan | None:
        """Plans the next step, with at most `num_decode_steps` decode sub-steps.

        None where there is nothing to send: nothing to compute, or `pipeline_depth` plans unanswered.
        """
        if len(self._in_flight) >= self._max_in_flight:
            return None
        draft = Draft(self._next_step_id)
        self._policy.begin_step(self._num_on_rows)
        self._plan_decodes(draft, num_decode_steps)
        self._plan_prefills(draft)
        self._admit(draft)
        self._policy.end_admission(out_of_tokens=draft.num_tokens >= self._max_num_batched_tokens)
        if draft.num_tokens == 0:
            # It may only now have turned out that a static batch is complete.
            self._plan_decodes(draft, num_decode_steps)
        if draft.num_tokens == 0:
            return None
        self._next_step_id += 1
        plan, planned = draft.finish(self._rows, self._to_release)
        self._to_release = []
        self._in_flight.append(planned)
        return plan

    def _plan_decodes(self, draft: Draft, num_decode_steps: int) -> None:
        num_prefilling = len(self._rows.prefilling())
        if not self._config.enable_kv_cache or not self._policy.may_decode(num_prefilling):
            return
        rows = self._rows.decodable()
        num_decode_steps = min(num_decode_steps, self._session.max_num_decode_steps)
        if len(self._waiting) or num_prefilling:
            num_decode_steps = 1  # prefills may join, and must not wait for several steps
        steps, lacking = self._decode_needs(rows, num_decode_steps)
        if num_decode_steps > 1 and lacking.sum() > self._cache.pool.num_available:
            num_decode_steps = 1
            steps, lacking = self._decode_needs(rows, 1)
        if lacking.any():
            self._grow(draft, rows[lacking > 0], lacking[lacking > 0])
            still = self._rows.incarnation[rows] != 0
            rows, steps = rows[still], steps[still]
        if not len(rows):
            return
        self._rows.num_planned[rows] += steps
        self._rows.last_step[rows] = draft.step_id
        draft.decode_rows, draft.decode_row_steps = rows, steps.astype(np.int32)
        draft.num_decode_steps = int(steps.max())
        draft.num_context_tokens += int(
            (self._rows.num_planned[rows] * steps - steps * (steps - 1) // 2).sum()
        )

    def _decode_needs(
        self, rows: NDArray[np.intp], num_decode_steps: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each decodable row the steps it can take, and the blocks that it lacks for them."""
        table = self._rows
        planned = table.num_planned[rows]
        steps = np.minimum(num_decode_steps, table.max_len[rows] - 1 - planned)
        lacking = (planned + steps - 1) // self._session.block_size + 1 - table.num_blocks[rows]
        return steps, lacking

    def _grow(self, draft: Draft, rows: NDArray[np.intp], lacking: NDArray[np.int64]) -> None:
        """Gives each row the blocks it lacks, best rank first, preempting from the worst where there are none."""
        needs = [(self._rows.at(row), int(count)) for row, count in zip(rows, lacking, strict=True)]
        for sequence, count in sorted(needs, key=lambda need: need[0].rank):
            while sequence.row >= 0 and self._cache.pool.num_available < count:
                self._preempt(max(self._rows.running(), key=lambda running: running.rank))
            if sequence.row >= 0:
                blocks = self._cache.grow(sequence, count)
                self._rows.num_blocks[sequence.row] += count
                draft.new_block_rows += [sequence.row] * count
                draft.new_block_ids += blocks

    def _preempt(self, sequence: Sequence) -> None:
        """Takes row and blocks away; the sequence keeps its tokens and waits at the head of its class."""
        self._leave_row(sequence)
        if sequence.sequence_id in self._live:  # and is not one that pads a static batch
            self._wait_again(sequence)
            sequence.num_preemptions += 1
            self._counters.num_preemptions += 1

    def _wait_again(self, sequence: Sequence) -> None:
        """Queues a sequence that has left its row."""
        if sequence.last_step > self._last_result:
            self._departed[sequence.incarnation] = sequence
        self._waiting.push(sequence)

    def _plan_prefills(self, draft: Draft) -> None:
        """Goes on with the prefills under way, best rank first."""
        sequences = [self._rows.at(row) for row in self._rows.prefilling()]
        for sequence in sorted(sequences, key=lambda sequence: sequence.rank):
            if draft.num_tokens < self._max_num_batched_tokens:
                self._plan_chunk(draft, sequence)

    def _plan_chunk(self, draft: Draft, sequence: Sequence) -> None:
        """Plans as much of a prefill as the step has tokens left for, which is at least one."""
        rows, row = self._rows, sequence.row
        first, end = int(rows.num_planned[row]), int(rows.prefill_end[row])
        num_tokens = min(end - first, self._max_num_batched_tokens - draft.num_tokens)
        rows.num_planned[row] = first + num_tokens
        rows.last_step[row] = draft.step_id
        draft.prefills.append(PrefillChunk(row, first, num_tokens, samples=first + num_tokens == end))
        draft.num_prefill_tokens += num_tokens
        draft.num_context_tokens += first + num_tokens
        tokens = rows.token_bytes(row, first + num_tokens)
        draft.entries += self._cache.register(sequence, tokens, confirmed=False)

    # Admission

    def _admit(self, draft: Draft) -> None:
        """Starts waiting sequences in order, until one cannot be started now."""
        while self._rows.num_free and draft.num_tokens < self._max_num_batched_tokens:
            sequence = self._waiting.head()
            if sequence is None or sequence.last_step > self._last_result:
                return
            if not self._policy.may_start(self._num_on_rows):
                return
            if (
                self._is_blocked(sequence)
                or draft.num_start_bytes + _start_bytes(sequence) > _MAX_START_BYTES
            ):
                return
            hits = self._cache.find_hits(sequence)
            num_known = len(sequence.token_ids)
            num_left = num_known - len(hits) * self._session.block_size
            budget = self._max_num_batched_tokens - draft.num_tokens
            if not self._config.enable_chunked_prefill and num_left > budget:
                return
            # With room to grow by a token, so that a preempted sequence does not come back only to be preempted.
            if not self._cache.has_room(hits, min(num_known + 1, sequence.max_len - 1)):
                self._blocked = (sequence.sequence_id, self._cache.pool.num_available)
                return
            self._waiting.pop()
            self._start(draft, sequence, hits)
            self._plan_chunk(draft, sequence)

    def _is_blocked(self, sequence: Sequence) -> bool:
        """Whether this sequence found no room when there was at least as much as now: spares the look-up."""
        sequence_id, num_available = self._blocked
        return sequence_id == sequence.sequence_id and self._cache.pool.num_available <= num_available

    def _start(self, draft: Draft, sequence: Sequence, hits: list[CacheEntry]) -> None:
        num_hit_tokens = len(hits) * self._session.block_size
        self._cache.open(sequence, hits)
        self._rows.start(sequence, self._next_incarnation, num_hit_tokens)
        self._next_incarnation += 1
        draft.num_start_bytes += _start_bytes(sequence)
        draft.starts.append(SequenceStart.of(sequence, num_hit_tokens))
        sequence.was_started = True
        self._counters.num_prefix_query_tokens += len(sequence.token_ids)
        self._counters.num_prefix_hit_tokens += num_hit_tokens

    # Results

    def update(self, result: StepResult, now: float) -> StepOutputs:
        """Takes in a sub-step's result; returns the tokens it makes known.

        ResultMismatch, with nothing changed, where it is not what the oldest unanswered plan asks for next.
        """
        planned = self._in_flight[0] if self._in_flight else None
        if planned is None or not planned.is_answered_by(
            result, self._next_sub_step, self._session.vocab_size
        ):
            raise ResultMismatch(
                f"step {result.step_id}.{result.sub_step} is not what the oldest plan asks for"
            )
        rows, incarnations = planned.sampling_rows(result.sub_step)
        live = self._rows.incarnation[rows] == incarnations
        outputs = self._confirm(np.flatnonzero(live), rows[live], result)
        if not live.all():
            departed = np.flatnonzero(~live)
            outputs = outputs.joined(self._confirm_departed(departed, incarnations[departed], result))
        outputs.prompt_slices.extend(self._judge_prompts(planned, result))
        self._next_sub_step += 1
        if result.last:
            self._close_step(planned)
        return outputs

    def _confirm(self, indices: NDArray[np.intp], rows: NDArray[np.int32], result: StepResult) -> StepOutputs:
        """Takes in the tokens of rows that still belong to the sequences the plan was made for."""
        table, block_size = self._rows, self._session.block_size
        padding = table.is_padding[rows]
        if padding.any():
            self._counters.num_padded_tokens += int(padding.sum())
            indices, rows = indices[~padding], rows[~padding]
        token_ids, sequence_ids = result.token_ids[indices], table.sequence_id[rows]
        finishes = np.full(len(rows), Finish.NONE, np.int8)
        if result.failed is not None:
            finishes[result.failed[indices]] = Finish.FAILED
        sampled = finishes == Finish.NONE
        good = rows[sampled]
        ends = table.confirm(good, token_ids[sampled])
        finishes[np.flatnonzero(sampled)[table.num_known[good] >= table.max_len[good]]] = Finish.LENGTH
        finishes[np.flatnonzero(sampled)[ends]] = Finish.STOP
        # The last token's KV is not computed yet: a block is full when the tokens before it fill it.
        num_computed = table.num_known[good] - 1
        for row in good[num_computed % block_size == 0]:
            tokens = table.token_bytes(row, int(table.num_known[row]) - 1)
            self._cache.register(table.at(row), tokens, confirmed=True)
        for row in rows[finishes != Finish.NONE]:
            self._end(table.at(row))
        if not self._config.enable_kv_cache:
            for row in rows[finishes == Finish.NONE]:
                self._recompute(table.at(row))
        self._counters.num_output_tokens += len(good)
        return StepOutputs(sequence_ids, token_ids, finishes, indices)

    def _confirm_departed(
        self, indices: NDArray[np.intp], incarnations: NDArray[np.int64], result: StepResult
    ) -> StepOutputs:
        """Takes in tokens of preempted sequences, which wait; those of ended ones are dropped."""
        kept, sequence_ids, finishes = [], [], []
        for index, incarnation in zip(indices, incarnations, strict=True):
            sequence = self._departed.get(int(incarnation))
            if sequence is None:
                self._counters.num_late_tokens += 1
                continue
            finish = Finish.FAILED
            if result.failed is None or not result.failed[index]:
                finish = sequence.append(int(result.token_ids[index]))
                self._counters.num_output_tokens += 1
            if finish is not Finish.NONE:
                self._remove(sequence)
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
            sequence = self._held(planned, piece.row)
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
        self._last_result = planned.step_id
        self._counters.num_steps += 1
        for entry in planned.entries:
            entry.confirmed = True
        self._departed = {
            incarnation: sequence
            for incarnation, sequence in self._departed.items()
            if sequence.last_step > planned.step_id
        }

    def _held(self, planned: PlannedStep, row: int) -> Sequence | None:
        """The live sequence that a row of a plan was made for."""
        incarnation = planned.incarnation_of(row)
        if incarnation is None:
            return None
        sequence = self._rows.sequences[row]
        if sequence is None or sequence.incarnation != incarnation:
            sequence = self._departed.get(incarnation)
        return sequence

    # Ends and losses

    def _leave_row(self, sequence: Sequence) -> None:
        self._to_release.append(sequence.row)
        self._rows.clear(sequence)
        self._cache.close(sequence)

    def _remove(self, sequence: Sequence) -> None:
        """Forgets a live sequence, wherever it is."""
        del self._live[sequence.sequence_id]
        if sequence.row >= 0:
            self._leave_row(sequence)
        else:
            self._waiting.remove(sequence)
            self._departed.pop(sequence.incarnation, None)
        self._close_batch()

    def _end(self, sequence: Sequence) -> None:
        """Forgets a sequence that sampled its last token; under a policy that pads, its row goes on."""
        if not self._policy.pads:
            self._remove(sequence)
            return
        del self._live[sequence.sequence_id]
        sequence.urgency = math.inf  # the first to give its blocks up
        self._rows.pad(sequence, self.max_model_len)
        self._close_batch()

    def _close_batch(self) -> None:
        """Clears the rows that only pad, when nothing else is on rows."""
        on_rows = self._rows.running() if self._policy.pads else []
        if on_rows and not any(sequence.sequence_id in self._live for sequence in on_rows):
            for sequence in on_rows:
                self._leave_row(sequence)

    def _recompute(self, sequence: Sequence) -> None:
        """Without a KV cache: forgets what was computed, so that the next token starts from the first."""
        self._leave_row(sequence)
        self._wait_again(sequence)

    def blame(self, step_id: int, rows: list[int]) -> list[int]:
        """Ids of the live sequences that an unanswered plan was made for on these rows; all its rows for none."""
        for planned in self._in_flight:
            if planned.step_id == step_id:
                held = (self._held(planned, row) for row in rows or planned.rows.tolist())
                return [sequence.sequence_id for sequence in held if sequence is not None]
        return []

    def reset(self, session: Session, now: float) -> list[int]:
        """Goes on with a new session: unanswered plans are void, every live sequence waits with its confirmed tokens.

        Cached prefixes live on where the executor is the same instance, but for those of unanswered plans. Returns
        the ids of sequences that cannot fit any more; they are forgotten.
        """
        for sequence in self._rows.running():
            self._leave_row(sequence)
        before = self._session
        self._open(session)
        if (before.instance_id, before.num_blocks, before.block_size) == (
            session.instance_id,
            session.num_blocks,
            session.block_size,
        ):
            self._cache.drop(self._cache.prefixes.provisional_blocks())
        else:
            self._cache = self._new_cache()
        lost = [sequence for sequence in self._live.values() if sequence.max_len > self.max_model_len]
        for sequence in lost:
            del self._live[sequence.sequence_id]
        for sequence in self._live.values():
            sequence.last_step = 0
            self._waiting.push(sequence)
        return [sequence.sequence_id for sequence in lost]

    def _open(self, session: Session) -> None:
        """Sets up everything that lasts as long as a session."""
        limit = min(self._config.max_num_batched_tokens, session.max_num_batched_tokens)
        if limit < session.max_num_seqs:
            raise ValueError(
                f"--max-num-batched-tokens: {limit} is less than the executor's {session.max_num_seqs} rows"
            )
        self._session = session
        self._max_num_batched_tokens = limit
        self._max_in_flight = min(self._config.pipeline_depth, session.max_plans_in_flight)
        self._rows = RowTable(session.max_num_seqs, session.max_model_len)
        self._waiting = WaitingQueue()
        self._in_flight = deque()
        self._departed = {}
        self._to_release = []
        self._next_step_id, self._next_sub_step, self._last_result = 1, 0, 0
        self._blocked = (0, 0)

    def _new_cache(self) -> KVCache:
        config, is_contiguous = self._config, self._config.kv_allocation == "contiguous"
        shares = config.enable_prefix_caching and config.enable_kv_cache and not is_contiguous
        reserved_len = self._session.max_model_len if is_contiguous else 0
        return KVCache(
            self._session, enable_prefix_caching=shares, hash_seed=config.hash_seed, reserved_len=reserved_len
        )

    # Operations

    def reset_prefix_cache(self) -> int:
        """Forgets all cached prefixes; returns how many blocks had one. Running sequences keep their blocks."""
        blocks = self._cache.prefixes.blocks()
        self._cache.drop(blocks)
        return len(blocks)

    @property
    def _num_on_rows(self) -> int:
        return self._session.max_num_seqs - self._rows.num_free

    def stats(self) -> Stats:
        """Reads the load and the counters."""
        pool, counters = self._cache.pool, self._counters
        num_padding = int(self._rows.is_padding.sum())
        return Stats(
            num_running=self._num_on_rows - num_padding,
            num_padding=num_padding,
            num_unused_slots=self._rows.num_unused_slots(self._session.block_size),
            num_waiting=len(self._waiting),
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


def _start_bytes(sequence: Sequence) -> int:
    """Bound of a start's size on the wire: tokens, block table, end tokens, biases, and the rest."""
    request = sequence.request
    num_ints = 2 * len(sequence.token_ids) + len(request.end_token_ids) + 3 * len(request.sampling.logit_bias)
    return 4 * num_ints + 256
