"""Limits of tenants, by a clock of the test's own."""

from hypothesis import given
from hypothesis import strategies as st

from scheduler_svc.messages import Code, Problem, TenantLimits
from scheduler_svc.tenants import BURST_SECONDS, Tenants


def tenants(*limits: TenantLimits) -> Tenants:
    made = Tenants()
    made.set_limits(limits, 0.0)
    return made


def retry_seconds(problem: Problem | None) -> float:
    assert problem is not None
    assert problem.code is Code.RESOURCE_EXHAUSTED
    return problem.retry_seconds


def test_who_has_no_limits_is_never_refused():
    made = tenants(TenantLimits("a"))
    for tenant in ("a", "unheard of", ""):
        made.use(tenant, 10**9)
        assert made.refusal(tenant, 10**9, 0.0) is None
    assert not made.counts_tokens


def test_as_many_requests_as_allowed_are_under_way_and_no_more():
    made = tenants(TenantLimits("a", max_concurrency=2), TenantLimits("b"))
    assert made.refusal("a", 1, 0.0) is None
    assert retry_seconds(made.refusal("a", 2, 0.0)) > 0
    assert made.refusal("b", 2, 0.0) is None


@given(
    rate=st.floats(0.01, 1e6),
    requests=st.lists(st.tuples(st.floats(0.0, 30.0), st.integers(1, 10_000)), max_size=40),
)
def test_tokens_come_to_no_more_than_rate_burst_and_the_last_request(
    rate: float, requests: list[tuple[float, int]]
):
    made, now, accepted = tenants(TenantLimits("a", tokens_per_second=rate)), 0.0, [0]
    for pause, num_tokens in requests:
        now += pause
        if made.refusal("a", 0, now) is None:
            accepted.append(num_tokens)
            made.use("a", num_tokens)
    allowed = rate * now + max(rate * BURST_SECONDS, 1.0)
    assert sum(accepted) - accepted[-1] <= allowed * (1 + 1e-9) + 1e-6


@given(rate=st.floats(0.01, 1e6), debt=st.integers(1, 10**6))
def test_who_waits_as_long_as_told_is_accepted(rate: float, debt: int):
    made = tenants(TenantLimits("a", tokens_per_second=rate))
    made.use("a", int(rate * BURST_SECONDS) + debt)
    refusal = made.refusal("a", 0, 1.0)
    if refusal is not None:
        assert made.refusal("a", 0, 1.0 + retry_seconds(refusal) * (1 + 1e-9) + 1e-9) is None


def test_new_limits_forgive_no_debt():
    made = tenants(TenantLimits("a", tokens_per_second=1.0), TenantLimits("b", tokens_per_second=1.0))
    made.use("a", 1000)
    made.set_limits([TenantLimits("a", tokens_per_second=2.0)], 0.0)
    assert 400 < retry_seconds(made.refusal("a", 0, 0.0)) < 600
    made.use("b", 10**9)
    assert made.refusal("b", 10**9, 0.0) is None
