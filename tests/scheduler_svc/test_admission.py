"""Who is let in."""

import hypothesis.strategies as st
from hypothesis import given

from scheduler_svc.admission import Admission
from scheduler_svc.messages import Code

counts = st.integers(0, 100)


@given(st.integers(1, 50), st.integers(1, 500), counts, counts, counts)
def test_the_queue_is_bounded_by_requests_and_by_tokens(
    max_size, max_tokens, waiting, waiting_tokens, tokens
):
    door = Admission(max_size, max_tokens)
    door.has_executor = True
    problem = door.refusal(waiting, waiting_tokens, tokens)
    too_many_tokens = waiting > 0 and waiting_tokens + tokens > max_tokens
    assert (problem is not None) == (waiting >= max_size or too_many_tokens)
    if problem is not None:
        assert problem.code is Code.RESOURCE_EXHAUSTED
        assert problem.retry_seconds is not None
        assert problem.retry_seconds > 0


def test_nobody_is_let_in_without_an_executor_or_while_draining():
    door = Admission(10)
    assert door.refusal(0, 0, 1).code is Code.UNAVAILABLE
    door.has_executor = True
    assert door.refusal(0, 0, 10**9) is None
    door.is_draining = True
    assert door.refusal(0, 0, 1).code is Code.UNAVAILABLE
