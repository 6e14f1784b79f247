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
* A guided sequence samples only by the mask that the shell makes of its last confirmed token (`set_mask`): it is in
  one plan at a time and left out of the others, while unguided ones keep their depth.
* Most results end nothing, and nothing waits for them: then the next plan is the same before them as after, and the
  shell may have it first (`changes_plans`).

Pure and deterministic: the same calls with the same arguments give the same plans.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from scheduler_svc.core.config import CoreConfig
from scheduler_svc.core.confirmer import Confirmer
from scheduler_svc.core.draft import Draft, PlannedStep
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.masks import TokenMask
from scheduler_svc.core.planner import Planner
from scheduler_svc.core.policy import POLICIES
from scheduler_svc.core.request import Int32Array, Request
from scheduler_svc.core.sequence import Sequence
from scheduler_svc.core.state import State
from scheduler_svc.core.stats import Stats
from scheduler_svc.core.step import ResultMismatch, Session, StepOutputs, StepPlan, StepResult

__all__ = ["CoreConfig", "Scheduler"]


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
        self._confirmer = Confirmer(self._config, self._state)
        # An array compared with a number, and not with an array of none or one, costs up to a microsecond more.
        self._vocab_size = np.array(self._state.limits.vocab_size, np.uint32)
        self._checked: StepResult | None = None
        """The result last found to answer the oldest plan, until it is taken in."""
        self._in_flight: deque[PlannedStep] = deque()
        """Plans sent, oldest first; the oldest is answered from `_next_sub_step` on."""
        self._next_step_id, self._next_sub_step = 1, 0

    @property
    def max_model_len(self) -> int:
        """Most tokens that prompt and output of a sequence may come to in this session."""
        return self._state.limits.max_model_len

    def add_request(self, request: Request, now: float) -> tuple[int, ...]:
        """Queues a request; returns the ids of its `n` sequences, of which those of outputs that are over are not live.

        RequestRefused where it could never be served.
        """
        self._state.limits.check(request)
        first = self._next_sequence_id
        self._next_sequence_id += request.n
        prompt, reports_prompt = request.prompt_token_ids.astype(np.int32, copy=False), True
        for index in range(request.n):
            token_ids: Int32Array | None = prompt
            if request.resumed:
                known = request.resumed[index]
                token_ids = None if known is None else np.concatenate([prompt, known.astype(np.int32)])
            if token_ids is None:
                continue
            sequence = Sequence(first + index, request, index, token_ids, self._urgency(request, now))
            sequence.reports_prompt, reports_prompt = reports_prompt, False
            self._state.live[sequence.sequence_id] = sequence
            self._state.waiting.push(sequence)
        return tuple(range(first, first + request.n))

    def set_mask(self, sequence_id: int, mask: TokenMask) -> None:
        """Tells which tokens a guided sequence may sample behind its confirmed ones; nothing where it is not live.

        To be told once it is added, and again for each of its tokens that `update` makes known.
        """
        sequence = self._state.live.get(sequence_id)
        if sequence is not None:
            sequence.mask = mask
            if sequence.row >= 0:
                self._state.rows.set_mask(sequence.row)

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

    def schedule(self, now: float, num_decode_steps: int = 1, num_answered: int = 0) -> StepPlan | None:
        """Plans the next step, with at most `num_decode_steps` decode sub-steps.

        None where there is nothing to send: nothing to compute, or `pipeline_depth` plans unanswered. `num_answered`
        of the plans under way are answered although `update` has not taken the results in; see `changes_plans`.
        """
        if len(self._in_flight) - num_answered >= self._state.limits.max_in_flight:
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
        planned = self._check(result)
        outputs = self._confirmer.confirm(planned, result)
        self._checked = None
        self._state.counters.num_steps += 1
        self._next_sub_step += 1
        if result.last:
            self._close_step(planned)
        return outputs

    def changes_plans(self, result: StepResult) -> bool:
        """Whether the next plan may be another once `update` has taken this result in. ResultMismatch as there.

        Where it says no, that plan may be made first, with `num_answered`: it, and all that follows, is the same. So
        an executor need not wait for what a result tells when it tells of no end and nothing could start or be
        preempted.
        """
        planned = self._check(result)
        return (
            bool(result.prompt_slices)
            or self._planner.may_start_or_preempt(planned.step_id)
            or not self._confirmer.ends_nothing(planned, result)
        )

    def _check(self, result: StepResult) -> PlannedStep:
        """Returns the plan that a result answers; ResultMismatch where it does not."""
        planned = self._in_flight[0] if self._in_flight else None
        if planned is None or not (
            self._checked is result or planned.is_answered_by(result, self._next_sub_step, self._vocab_size)
        ):
            raise ResultMismatch(
                f"step {result.step_id}.{result.sub_step} is not what the oldest plan asks for"
            )
        self._checked = result
        return planned

    def _close_step(self, planned: PlannedStep) -> None:
        self._in_flight.popleft()
        self._next_sub_step = 0
        self._state.last_result = planned.step_id
        for entry in planned.entries:
            entry.confirmed = True
        if self._state.departed:
            self._state.departed = {
                incarnation: sequence
                for incarnation, sequence in self._state.departed.items()
                if sequence.last_step > planned.step_id
            }

    def settle(self) -> None:
        """Does what the last results left to do: to be called when nothing waits for a plan, or never.

        When it is called may change which block ids are given out, and nothing that a request gets.
        """
        self._state.cache.settle()

    def blame(self, step_id: int, rows: Iterable[int]) -> list[int]:
        """Ids of the live sequences that an unanswered plan was made for on these rows."""
        for planned in self._in_flight:
            if planned.step_id == step_id:
                held = (self._state.held(planned, row) for row in rows)
                return [sequence.sequence_id for sequence in held if sequence is not None]
        return []

    def unanswered(self, step_id: int | None = None) -> tuple[set[int], int]:
        """The live sequences of unanswered plans, or of that one, and how many tokens these may bring each at most."""
        plans = [planned for planned in self._in_flight if step_id in (None, planned.step_id)]
        held = (self._state.held(planned, row) for planned in plans for row in planned.rows.tolist())
        num_steps = sum(planned.num_decode_steps for planned in plans)
        return {sequence.sequence_id for sequence in held if sequence is not None}, num_steps

    @property
    def num_in_flight(self) -> int:
        """Plans not yet answered."""
        return len(self._in_flight)

    @property
    def live(self) -> Mapping[int, Sequence]:
        """All sequences that have not ended, by id."""
        return self._state.live

    def hold(self, is_held: Callable[[int], bool] | None) -> None:
        """In this session nothing more is planned for those sequences that `is_held` says by their ids.

        None: nobody is held. Those that run stop, to start again when they are held no more. No plan may be unanswered.
        """
        assert not self._in_flight
        self._state.hold(is_held)

    def num_lost_by(self, session: Session) -> int:
        """How many sequences such a session could not hold any more. ValueError as for a first session."""
        limits = Limits(self._config, session)
        return sum(not limits.holds(sequence.request) for sequence in self._state.live.values())

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
        self._state.cache.settle()
        blocks = list(self._state.cache.prefixes.by_block)
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
            num_shared_blocks=pool.num_shared,
            num_plans_in_flight=len(self._in_flight),
            num_preemptions=counters.num_preemptions,
            num_prefix_query_tokens=counters.num_prefix_query_tokens,
            num_prefix_hit_tokens=counters.num_prefix_hit_tokens,
            num_steps=counters.num_steps,
            num_output_tokens=counters.num_output_tokens,
            num_late_tokens=counters.num_late_tokens,
            num_padded_tokens=counters.num_padded_tokens,
        )
