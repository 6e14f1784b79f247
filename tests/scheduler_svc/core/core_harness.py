"""A core and an adversarial virtual executor, joined step by step by the test.

The executor applies each plan when it is made, as a real one would in order; the test decides when each result comes.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from executor_svc.virtual import VirtualExecutor, virtual_token
from scheduler_svc.core.request import Finish, Request, sequence_seed
from scheduler_svc.core.scheduler import CoreConfig, Scheduler
from scheduler_svc.core.step import Session, StepOutputs, StepPlan, StepResult
from scheduler_svc.simulate.plans import to_executor, to_limits, to_result

VOCAB_SIZE = 13
INSTANCE = "an instance"


def make_session(**changes) -> Session:
    """A small executor: 11 blocks of 4 tokens, 4 rows, sequences of at most 40 tokens, 16 tokens a step."""
    sizes = {
        "instance_id": INSTANCE,
        "num_blocks": 12,
        "block_size": 4,
        "max_num_seqs": 4,
        "max_model_len": 40,
        "max_num_batched_tokens": 16,
        "vocab_size": VOCAB_SIZE,
        "max_num_decode_steps": 4,
    }
    return Session(**(sizes | changes))


def make_request(prompt: list[int], max_tokens: int, **changes) -> Request:
    """A request that no end token ends, unless `end_token_ids` says so."""
    return Request("r", np.array(prompt, np.int32), max_tokens, **changes)


@dataclass
class Answer:
    """What a sequence has got so far."""

    request: Request
    index: int
    tokens: list[int] = field(default_factory=list)
    finish: Finish = Finish.NONE
    prompt_positions: list[int] = field(default_factory=list)
    """Prompt positions judged, in the order in which they came."""

    @cached_property
    def expected(self) -> tuple[list[int], Finish]:
        """The tokens and the end that the sequence gets when nothing else runs."""
        seed, first = sequence_seed(self.request.seed, self.index), len(self.request.prompt_token_ids)
        tokens: list[int] = []
        while len(tokens) < self.request.max_tokens:
            tokens.append(virtual_token(seed, first + len(tokens), VOCAB_SIZE))
            if tokens[-1] in self.request.end_token_ids:
                return tokens, Finish.STOP
        return tokens, Finish.LENGTH

    def expected_prompt_positions(self) -> list[int]:
        """All but the first, once, where they were asked for; output 0 has them for all."""
        wanted = self.request.sampling.prompt_logprobs is not None and self.index == 0
        return list(range(1, len(self.request.prompt_token_ids))) if wanted else []


class Harness:
    """Owns a core, its executor, and the results under way."""

    def __init__(self, config: CoreConfig | None = None, **session_changes) -> None:
        self.session = make_session(**session_changes)
        self.config = config or CoreConfig(max_num_batched_tokens=16)
        self.core = Scheduler(self.config, self.session)
        self.schedule = self.core.schedule
        """What makes the plans."""
        self.executor = self._new_executor()
        self.answers: dict[int, Answer] = {}
        self.plans: list[StepPlan] = []
        self.under_way: deque[StepResult] = deque()
        self.now = 0.0
        self.num_plans_ahead = 0
        """Plans made before the result that came at that time was taken in."""
        self.watch: Callable[[StepPlan], None] | None = None
        """Told of every plan, before anything else happens."""

    def _new_executor(self) -> VirtualExecutor:
        return VirtualExecutor(to_limits(self.session))

    def add(self, prompt: list[int], max_tokens: int, **changes) -> tuple[int, ...]:
        """Adds a request; returns its sequence ids."""
        request = make_request(prompt, max_tokens, **changes)
        ids = self.core.add_request(request, self.now)
        for index, sequence_id in enumerate(ids):
            self.answers[sequence_id] = Answer(request, index)
        return ids

    def abort(self, sequence_id: int) -> None:
        """Ends a sequence from outside."""
        assert self.core.abort(sequence_id) == (self.answers[sequence_id].finish is Finish.NONE)
        del self.answers[sequence_id]

    def plan(self, num_decode_steps: int = 1, num_answered: int = 0) -> StepPlan | None:
        """Makes a plan and has the executor check and run it; its results are then under way."""
        self.now += 1
        plan = self.schedule(self.now, num_decode_steps, num_answered)
        if plan is not None:
            assert plan.num_tokens <= self.config.max_num_batched_tokens * plan.num_decode_steps
            self.plans.append(plan)
            if self.watch is not None:
                self.watch(plan)
            outputs = self.executor.apply(to_executor(plan, self.session.vocab_size))
            assert len(outputs) == plan.num_decode_steps
            for sub_step, output in enumerate(outputs):
                last = sub_step == len(outputs) - 1
                self.under_way.append(to_result(plan.step_id, sub_step, last, output))
        return plan

    def deliver(self, failed_row: int | None = None) -> StepOutputs:
        """Hands the oldest result under way to the core, with one row (by its place in it) failed where asked."""
        result = self.under_way.popleft()
        if failed_row is not None and len(result.rows):
            failed = np.arange(len(result.rows)) == failed_row % len(result.rows)
            result = replace(
                result, failed=failed, token_ids=np.where(failed, np.int32(-1), result.token_ids)
            )
        outputs = self.core.update(result, self.now)
        for sequence_id, index, skip in outputs.prompt_slices:
            piece = result.prompt_slices[index]
            positions = range(piece.first_position + skip, piece.first_position + piece.num_positions)
            self.answers[sequence_id].prompt_positions += positions
        for sequence_id, token, finish in zip(
            outputs.sequence_ids, outputs.token_ids, outputs.finishes, strict=True
        ):
            answer = self.answers[int(sequence_id)]
            assert answer.finish is Finish.NONE, "nothing comes after the end"
            answer.finish = Finish(finish)
            if answer.finish is not Finish.FAILED:
                answer.tokens.append(int(token))
        return outputs

    def deliver_and_plan(
        self, num_decode_steps: int = 1, *, ahead: bool, failed_row: int | None = None
    ) -> tuple[StepOutputs, StepPlan | None]:
        """Hands the oldest result over and makes the next plan; with `ahead` the plan first, where that may be."""
        result = self.under_way[0]
        if not ahead or failed_row is not None or self.core.changes_plans(result):
            outputs = self.deliver(failed_row)
            return outputs, self.plan(num_decode_steps)
        plan = self.plan(num_decode_steps, num_answered=int(result.last))
        self.num_plans_ahead += plan is not None
        return self.deliver(), plan

    def lose_session(self, **session_changes) -> None:
        """Drops everything under way and opens a new session, with another instance where the sizes change."""
        self.under_way.clear()
        if session_changes:
            self.session = make_session(**session_changes)
            self.executor = self._new_executor()
        else:
            self.executor.reset()
        for sequence_id in self.core.reset(self.session, self.now):
            self.answers[sequence_id].finish = Finish.NO_ROOM

    def run_to_end(self, num_decode_steps: int = 1) -> None:
        """Plans and delivers until nothing is left to do; fails where work does not advance."""
        for _ in range(5000):
            if self.plan(num_decode_steps) is None:
                if not self.under_way:
                    return
                self.deliver()
        raise AssertionError("work does not advance")

    def check_answers(self) -> None:
        """Every sequence that was not aborted has ended, with the tokens it gets when alone; nothing is held."""
        for answer in self.answers.values():
            tokens, finish = answer.expected
            expected_positions = answer.expected_prompt_positions()
            if answer.finish in (Finish.NO_ROOM, Finish.FAILED):
                assert answer.tokens == tokens[: len(answer.tokens)]
                assert answer.prompt_positions == expected_positions[: len(answer.prompt_positions)]
            else:
                assert (answer.tokens, answer.finish) == (tokens, finish)
                assert answer.prompt_positions == expected_positions
        stats = self.core.stats()
        assert (stats.num_held_blocks, stats.num_running, stats.num_waiting) == (0, 0, 0)
