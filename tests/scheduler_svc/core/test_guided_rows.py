"""Guided sequences sample by their own masks alone, one plan at a time, whatever else happens to them."""

from collections import Counter

import numpy as np
from core_harness import VOCAB_SIZE, Answer, Harness
from hypothesis import given, settings
from hypothesis import strategies as st

from executor_svc.virtual import virtual_token
from scheduler_svc.core.config import CoreConfig
from scheduler_svc.core.masks import TokenMask
from scheduler_svc.core.request import Finish, Guide, Request, sequence_seed
from scheduler_svc.core.step import StepOutputs, StepPlan

GUIDE = Guide("regex", "of this test's own making")


def allowed_behind(tokens: list[int]) -> np.ndarray:
    """The grammar of these tests: which tokens may follow depends on all that came before."""
    offset = sum(tokens) + len(tokens)
    return (np.arange(VOCAB_SIZE) + offset) % 3 == 0


def expected(request: Request, index: int) -> tuple[list[int], Finish]:
    """What a guided sequence gets when nothing else runs."""
    seed, tokens = sequence_seed(request.seed, index), list[int]()
    while len(tokens) < request.max_tokens:
        token = virtual_token(seed, len(request.prompt_token_ids) + len(tokens), VOCAB_SIZE)
        allowed = allowed_behind(tokens)
        while not allowed[token]:
            token = (token + 1) % VOCAB_SIZE
        tokens.append(token)
        if token in request.end_token_ids:
            return tokens, Finish.STOP
    return tokens, Finish.LENGTH


class GuidedHarness(Harness):
    """A harness in which masks come when the test says so; counts the plans that a guided sequence is in."""

    def __init__(self, config: CoreConfig | None = None, **session_changes) -> None:
        super().__init__(config, **session_changes)
        self.due: list[int] = []
        """Guided sequences whose masks are yet to be told."""

    def add(self, prompt: list[int], max_tokens: int, **changes) -> tuple[int, ...]:
        ids = super().add(prompt, max_tokens, **changes)
        if changes.get("guide") is not None:
            self.due += ids
        return ids

    def tell(self, count: int) -> None:
        """Tells the masks of the first `count` sequences that wait for one."""
        for sequence_id in self.due[:count]:
            bits = np.packbits(allowed_behind(self.answers[sequence_id].tokens), bitorder="little").tobytes()
            self.core.set_mask(sequence_id, TokenMask.smallest(bits, VOCAB_SIZE))
        del self.due[:count]

    def plan(self, num_decode_steps: int = 1, num_answered: int = 0) -> StepPlan | None:
        plan = super().plan(num_decode_steps, num_answered)
        if plan is not None and plan.masks:
            assert plan.num_decode_steps == 1
            masked = {mask.row for mask in plan.masks}
            under_way = Counter(row for result in self.under_way for row in result.rows.tolist())
            started = {start.row for start in plan.starts}
            assert all(under_way[row] == 1 for row in masked - started)
        return plan

    def deliver(self, failed_row: int | None = None) -> StepOutputs:
        outputs = super().deliver(failed_row)
        for sequence_id, finish in zip(outputs.sequence_ids.tolist(), outputs.finishes, strict=True):
            if finish == Finish.NONE and self.answers[sequence_id].request.guide is not None:
                self.due.append(sequence_id)
        return outputs

    def check(self) -> None:
        for answer in self.answers.values():
            self._check(answer)
        stats = self.core.stats()
        assert (stats.num_held_blocks, stats.num_running, stats.num_waiting) == (0, 0, 0)

    def _check(self, answer: Answer) -> None:
        guided = answer.request.guide is not None
        alone = expected(answer.request, answer.index) if guided else answer.expected
        assert (answer.tokens, answer.finish) == alone


requests = st.fixed_dictionaries(
    {
        "prompt": st.lists(st.integers(0, 12), min_size=1, max_size=20),
        "max_tokens": st.integers(1, 18),
        "seed": st.integers(0, 9999),
        "n": st.integers(1, 2),
        "end_token_ids": st.lists(st.integers(0, 12), max_size=1).map(tuple),
        "guide": st.sampled_from([None, GUIDE]),
    }
)
actions = st.lists(
    st.one_of(
        requests,
        st.sampled_from(["plan", "several", "deliver", "ahead", "lose"]),
        st.integers(1, 3),
    ),
    max_size=60,
)


@given(
    actions,
    st.integers(12, 30),
    st.sampled_from(["continuous", "static", "naive"]),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_guided_sequences_get_the_tokens_that_they_get_alone(
    actions: list[object], num_blocks: int, batching: str, enable_kv_cache: bool
):
    config = CoreConfig(
        max_num_batched_tokens=40 if batching == "naive" else 16,
        batching=batching,
        enable_kv_cache=enable_kv_cache or batching != "naive",
    )
    harness = GuidedHarness(config, num_blocks=num_blocks, max_num_batched_tokens=40)
    for action in actions:
        if isinstance(action, dict):
            harness.add(**action)
        elif isinstance(action, int):
            harness.tell(action)
        elif action == "plan":
            harness.plan()
        elif action == "several":
            harness.plan(4)
        elif action == "lose":
            harness.lose_session()
        elif harness.under_way:
            harness.deliver_and_plan(ahead=action == "ahead")
    for _ in range(3000):
        harness.tell(2)
        if harness.plan(2) is None:
            if not (harness.under_way or harness.due):
                break
            if harness.under_way:
                harness.deliver()
    harness.check()


def test_unguided_rows_keep_their_depth_beside_guided_ones():
    harness = GuidedHarness()
    (free,) = harness.add([1, 2], 30)
    (guided,) = harness.add([3, 4], 30, guide=GUIDE, end_token_ids=())
    harness.tell(1)
    for _ in range(12):
        harness.plan()
        plan = harness.plan()
        if plan is not None:
            assert len(harness.under_way) == 2
        in_flight = [result.rows.tolist() for result in harness.under_way]
        assert all(0 in rows for rows in in_flight)
        assert sum(1 in rows for rows in in_flight) <= 1
        harness.deliver()
        harness.tell(1)
    assert len(harness.answers[free].tokens) == 12
    assert len(harness.answers[guided].tokens) >= 5


def test_nothing_is_sampled_before_the_first_mask_comes():
    harness = GuidedHarness()
    harness.add([1, 2], 5, guide=GUIDE)
    assert harness.plan() is None
    harness.tell(1)
    plan = harness.plan()
    assert plan is not None
    assert [mask.row for mask in plan.masks] == [start.row for start in plan.starts]


def test_rows_that_pad_are_not_masked():
    harness = GuidedHarness(CoreConfig(max_num_batched_tokens=16, batching="static"))
    harness.add([1], 1, guide=GUIDE)
    harness.add([2], 9)
    for _ in range(30):
        harness.tell(9)
        plan = harness.plan()
        if plan is None and harness.under_way:
            harness.deliver()
    assert any(len(plan.decode_rows) == 2 and not plan.masks for plan in harness.plans)
    harness.check()
