"""Limits of steps: long enough for any that works, and told from the time that a watcher was itself held up."""

from hypothesis import given
from hypothesis import strategies as st

from nanoserve.step_limits import TICK_SECONDS, StepClock, StepLimits


@given(
    fixed=st.floats(0, 5),
    per_token=st.floats(0, 0.05),
    sizes=st.lists(st.integers(1, 8192), min_size=2, max_size=40),
)
def test_no_step_of_a_steady_executor_is_ever_overdue(fixed: float, per_token: float, sizes: list[int]):
    limits = StepLimits()
    for number, num_tokens in enumerate(sizes):
        seconds = fixed + per_token * num_tokens
        if number:  # before the first there is nothing to know it by
            assert seconds < limits.limit(num_tokens)
        limits.observe(num_tokens, seconds)


def test_the_first_steps_have_time_by_their_tokens():
    limits = StepLimits()
    assert limits.limit(1) == 10.0
    assert limits.limit(2048) > 300.0


def test_a_fast_executor_is_not_waited_for_longer_than_ten_seconds():
    limits = StepLimits()
    for num_tokens in (1, 256, 4096):
        limits.observe(num_tokens, 0.1)
        assert limits.limit(num_tokens) == 10.0


def test_one_slow_step_is_forgotten_in_time():
    limits = StepLimits()
    limits.observe(1, 60.0)
    assert limits.limit(1) == 1200.0
    for _ in range(200):
        limits.observe(1, 0.001)
    assert limits.limit(1) == 10.0


def test_only_ticks_count():
    clock = StepClock()
    assert clock.tick(1, 0.0) == 0.0
    assert clock.tick(1, TICK_SECONDS) == TICK_SECONDS
    assert clock.tick(1, 3600.0) == 3 * TICK_SECONDS
    assert clock.tick(2, TICK_SECONDS) == 0.0
    assert clock.tick(None, TICK_SECONDS) == 0.0
    assert clock.tick(2, TICK_SECONDS) == 0.0
