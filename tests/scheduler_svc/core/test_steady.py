"""What is looked up once for many steps is what each step would find."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
from core_harness import Harness
from hypothesis import given, settings

from scheduler_svc.core.config import CoreConfig
from scheduler_svc.core.rows import RowTable
from scheduler_svc.core.steady import SteadyBatch


@given(st.integers(1, 5), st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(1, 30))
def test_a_batch_knows_in_each_step_who_has_filled_a_block(block_size: int, ends: list[int], num_steps: int):
    table = RowTable(len(ends), 100, block_size, vocab_size=9)
    rows = np.arange(len(ends))
    table.max_len[:] = 1 + max(ends) + num_steps
    batch = SteadyBatch(table, rows, np.array(ends), block_size)
    assert batch.num_steps_left == num_steps
    for step in range(num_steps + 1):
        expected = [place for place, end in enumerate(ends) if (end + step) % block_size == 0]
        assert batch.filled().tolist() == expected
        batch.advance(batch.ends + 1)


requests = st.fixed_dictionaries(
    {
        "prompt": st.lists(st.integers(0, 1), min_size=1, max_size=12),
        "max_tokens": st.integers(1, 20),
        "seed": st.integers(0, 99),
        "end_token_ids": st.lists(st.integers(0, 12), max_size=1).map(tuple),
    }
)


def history(harness: Harness, requests: list[dict[str, Any]], gap: int, *, forgetful: bool) -> list[str]:
    """All that happens while requests come `gap` steps apart, the plans with the rows packed anew or not."""
    made: list[str] = []
    coming, num_rounds = list(requests), 0
    while coming or harness.under_way or num_rounds == 0 or made[-1] != "None":
        if coming and num_rounds % (gap + 1) == 0:
            harness.add(**coming.pop())
        num_rounds += 1
        for _ in range(2):
            if forgetful:
                harness.core._state.rows.version += 1
            plan = harness.plan()
            made.append(repr(plan and plan._replace(packed_decode_rows=None)))
        if harness.under_way:
            made.append(repr((harness.deliver(), harness.core.stats())))
    return made


@given(
    st.lists(requests, min_size=1, max_size=6),
    st.integers(0, 9),
    st.integers(9, 30),
    st.sampled_from(["continuous", "static", "naive"]),
)
@settings(max_examples=200, deadline=None)
def test_a_core_that_goes_on_plans_what_one_that_looks_everything_up_plans(
    requests: list[dict[str, Any]], gap: int, num_blocks: int, batching: Any
):
    one, other = (
        Harness(CoreConfig(max_num_batched_tokens=16, batching=batching), num_blocks=num_blocks)
        for _ in range(2)
    )
    assert history(one, requests, gap, forgetful=False) == history(other, requests, gap, forgetful=True)
    one.check_answers()
