"""Lost sessions: whoever makes executors fail is found, in few losses, and costs nobody else a token."""

import math
import random

import pytest
from core_harness import Harness
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_svc.core.config import CoreConfig
from scheduler_svc.core.isolation import Isolation
from scheduler_svc.core.recovery import Recovery
from scheduler_svc.core.request import Finish
from scheduler_svc.core.step import StepPlan


class Ward:
    """A harness whose executor may end at any plan, with a recovery between it and its core."""

    def __init__(self, num_rows: int = 4, num_blocks: int = 12, **config) -> None:
        policy = CoreConfig(max_num_batched_tokens=16, **config)
        self.harness = Harness(policy, max_num_seqs=num_rows, num_blocks=num_blocks)
        self.recovery = Recovery(self.harness.core, 0.0)
        self.num_losses = 0
        self.ended: list[int] = []
        self.harness.schedule = self.recovery.schedule
        self.core = self.harness.core

    def plan(self, num_decode_steps: int = 1) -> StepPlan | None:
        """Makes a plan and has the executor run it."""
        return self.harness.plan(num_decode_steps)

    def deliver(self) -> None:
        self.recovery.updated(self.harness.deliver())

    def lose(self, failed_step: int | None = None) -> None:
        """The session is lost, and another one opened."""
        harness = self.harness
        self.num_losses += 1
        at_fault = self.recovery.lost(harness.now, failed_step)
        if at_fault is not None:
            self.ended.append(at_fault)
            harness.abort(at_fault)
        harness.under_way.clear()
        harness.executor.reset()
        assert self.recovery.reset(harness.session, harness.now) == []

    def check(self) -> None:
        """All that were not ended have their tokens."""
        for answer in self.harness.answers.values():
            assert answer.finish in (Finish.STOP, Finish.LENGTH)
        self.harness.check_answers()

    def run(self, poison: int | None, lethal: int, rng: random.Random, *, tells: bool) -> None:
        """Runs to the end; any plan that computes the poison behind `lethal` output tokens ends the executor.

        `tells`: by a FAILED step, after the plans before it were answered; otherwise at any moment.
        """
        for _ in range(20_000):
            plan = self.plan(rng.choice([1, 1, 3])) if rng.random() < 0.7 else None
            if plan is not None:
                if poison is not None and self.reach(plan, poison) > lethal:
                    before = [result for result in self.harness.under_way if result.step_id < plan.step_id]
                    for _ in range(len(before) if tells else rng.randint(0, len(before))):
                        self.deliver()
                    self.lose(plan.step_id if tells else None)
            elif self.harness.under_way:
                self.deliver()
            elif not self.harness.core.live:
                return
        raise AssertionError("work does not advance")

    def reach(self, plan: StepPlan, sequence_id: int) -> int:
        """How many tokens behind its prompt a plan's computation of a sequence reaches."""
        ends = {chunk.row: chunk.first_position + chunk.num_tokens for chunk in plan.prefills}
        ends |= dict(zip(plan.decode_rows.tolist(), plan.decode_ends.tolist(), strict=True))
        for row, end in ends.items():
            sequence = self.core._state.rows.sequences[row]
            if sequence is not None and sequence.sequence_id == sequence_id:
                return end - sequence.num_prompt_tokens
        return -1


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), tells=st.booleans(), num_requests=st.integers(1, 9))
def test_one_poisonous_sequence_is_found_and_all_others_get_their_tokens(
    seed: int, tells: bool, num_requests: int
):
    rng = random.Random(seed)
    ward = Ward(num_rows=rng.choice([2, 4, 8]), num_blocks=rng.choice([12, 40]))
    ids: list[int] = []
    for number in range(num_requests):
        prompt = [rng.randrange(13) for _ in range(rng.randint(1, 20))]
        ids += ward.harness.add(prompt, rng.randint(1, 12), seed=number, n=rng.choice([1, 1, 3]))
    poison, lethal = rng.choice(ids), rng.randint(0, 6)
    ward.run(poison, lethal, rng, tells=tells)
    assert ward.ended in ([], [poison])
    assert ward.num_losses <= 4 + math.ceil(math.log2(len(ids)))
    assert (ward.num_losses >= 3) == bool(ward.ended)
    ward.check()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), tells=st.booleans())
def test_a_sequence_that_is_added_while_others_are_tried_gets_its_tokens_too(seed: int, tells: bool):
    rng = random.Random(seed)
    ward = Ward(num_rows=4, num_blocks=40)
    poison, *_ = ward.harness.add([1, 2, 3], 9, n=4)
    ward.harness.watch = lambda plan: (
        ward.harness.add([rng.randrange(13)] * 5, 4, seed=plan.step_id)
        if rng.random() < 0.1 and len(ward.harness.answers) < 30
        else None
    )
    ward.run(poison, rng.randint(0, 5), rng, tells=tells)
    assert ward.ended == [poison]
    ward.check()


@pytest.mark.parametrize("config", [{"batching": "static"}, {"batching": "naive"}, {"pipeline_depth": 4}])
def test_the_policy_changes_nothing_about_who_is_found(config: dict[str, object]):
    rng = random.Random(1)
    ward = Ward(num_rows=4, num_blocks=40, **config)
    ids = [ward.harness.add([i, 2, 3], 9, seed=i)[0] for i in range(6)]
    ward.run(ids[3], 2, rng, tells=False)
    assert ward.ended == [ids[3]]
    ward.check()


def test_executors_that_end_by_themselves_now_and_then_cost_nobody_anything():
    ward = Ward(num_rows=4, num_blocks=40)
    for i in range(6):
        ward.harness.add([i, 2, 3], 30, seed=i)
    for _ in range(40):
        for _ in range(12):
            if ward.plan() is None and ward.harness.under_way:
                ward.deliver()
        ward.harness.now += 10
        ward.lose()
    assert ward.ended == []
    ward.run(None, 0, random.Random(0), tells=False)
    ward.check()


def test_a_first_loss_holds_nobody():
    ward = Ward()
    ward.harness.add([1, 2], 5)
    ward.harness.add([1, 3], 5)
    ward.plan()
    ward.lose()
    plan = ward.plan()
    assert plan is not None
    assert len(plan.starts) == 2


def test_from_the_second_loss_on_suspects_wait_until_the_others_have_gone_on_and_are_then_alone():
    ward = Ward(num_rows=3, num_blocks=40)
    first, second, other = (ward.harness.add([i], 8)[0] for i in range(3))
    ward.plan()
    ward.deliver()
    ward.lose()  # nobody unanswered: no loss that counts
    ward.plan()
    ward.deliver()
    ward.core.hold({other}.__contains__)  # so that the plans to be lost are of two alone
    for _ in range(2):
        while ward.plan() is not None:
            pass
        ward.lose()
        ward.core.hold({other}.__contains__ if ward.num_losses == 2 else {first, second}.__contains__)
    plan = ward.plan()
    assert plan is not None
    assert [start.sequence_id for start in plan.starts] == [other]
    ward.deliver()
    for suspect in (first, second):
        plan = ward.plan()
        assert plan is not None
        assert [start.sequence_id for start in plan.starts] == [suspect]
        assert ward.plan() is None, "one plan in flight"
        while ward.harness.under_way:
            ward.deliver()
        if suspect == first:
            plan = ward.plan()  # two plans were lost: it is past them with the second token
            assert plan is not None
            assert len(plan.decode_rows) == 1
            ward.deliver()
    ward.run(None, 0, random.Random(0), tells=False)
    ward.check()


def test_the_minute_is_of_time_with_a_session_open():
    isolation = Isolation()
    isolation.opened(0.0, (1, 2))
    assert isolation.lost(10.0, {1, 2}, 1) is None
    isolation.opened(500.0, (1, 2))
    assert isolation.lost(540.0, {1, 2}, 1) is None
    assert isolation.suspects == {1, 2}
    isolation.opened(1000.0, (1, 2))
    assert isolation.num_recent_losses(1019.0) == 2
    assert isolation.num_recent_losses(1021.0) == 1


@pytest.mark.parametrize(("num_tokens", "is_found"), [(1, True), (2, False)])
def test_losses_count_against_a_sequence_until_it_is_past_where_it_was_lost(num_tokens: int, is_found: bool):
    isolation, found = Isolation(), []
    for now in range(0, 100, 10):
        isolation.opened(now, (1,))
        if isolation.is_active:
            isolation.begin_trial()
        for _ in range(num_tokens):
            isolation.advanced([1])
        found.append(isolation.lost(now + 1, {1}, 2))
    assert (found.index(1) == 2) if is_found else found == [None] * 10
