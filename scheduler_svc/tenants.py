"""What tenants may do: how many requests at once, and how many tokens over time. One for the API of all workers.

A tenant's bucket fills by `tokens_per_second`, up to what comes in BURST_SECONDS. A request is accepted while there is
a token in it; its prompt's tokens are taken out then, its output tokens as they come, also when nothing is left: what
has been accepted is never slowed down, and a debt is paid by waiting. Cached prompt tokens count like others.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from scheduler_svc.messages import Code, Problem, TenantLimits

BURST_SECONDS = 10.0
# Nobody knows when a request of the tenant will end.
_CONCURRENCY_RETRY_SECONDS = 1.0
_MIN_RETRY_SECONDS = 0.1


@dataclass(slots=True)
class _Bucket:
    """Tokens that may still be used at `time`, in seconds; less than 0 is a debt."""

    rate: float
    level: float
    time: float

    def settle(self, now: float) -> float:
        """Lets in what has come since; returns the level."""
        self.level = min(self.level + (now - self.time) * self.rate, _capacity(self.rate))
        self.time = now
        return self.level


class Tenants:
    """The limits of this moment, and what has been used of them. Times are seconds of one clock."""

    def __init__(self) -> None:
        self._limits: dict[str, TenantLimits] = {}
        self._buckets: dict[str, _Bucket] = {}

    @property
    def counts_tokens(self) -> bool:
        """Whether anybody's tokens are limited."""
        return bool(self._buckets)

    def set_limits(self, limits: Iterable[TenantLimits], now: float) -> None:
        """Puts limits in the place of those before; who had a rate keeps its level, a debt too."""
        before, self._buckets = self._buckets, {}
        self._limits = {limit.tenant: limit for limit in limits}
        for tenant, limit in self._limits.items():
            rate = limit.tokens_per_second
            if rate is not None:
                bucket = before.get(tenant)
                level = _capacity(rate) if bucket is None else min(bucket.settle(now), _capacity(rate))
                self._buckets[tenant] = _Bucket(rate, level, now)

    def refusal(self, tenant: str, num_under_way: int, now: float) -> Problem | None:
        """Why a tenant with so many requests under way gets no other one accepted; None where it does."""
        limits = self._limits.get(tenant)
        if limits is None:
            return None
        most = limits.max_concurrency
        if most is not None and num_under_way >= most:
            description = f"{num_under_way} requests of this tenant are under way, {most} may be"
            return Problem(Code.RESOURCE_EXHAUSTED, description, retry_seconds=_CONCURRENCY_RETRY_SECONDS)
        bucket = self._buckets.get(tenant)
        if bucket is not None and bucket.settle(now) < 1:
            description = f"this tenant has used its {bucket.rate:g} tokens a second"
            seconds = max((1 - bucket.level) / bucket.rate, _MIN_RETRY_SECONDS)
            return Problem(Code.RESOURCE_EXHAUSTED, description, retry_seconds=seconds)
        return None

    def use(self, tenant: str, num_tokens: int) -> None:
        """Takes tokens out of a tenant's bucket, if it has one."""
        bucket = self._buckets.get(tenant)
        if bucket is not None:
            bucket.level -= num_tokens


def _capacity(rate: float) -> float:
    """The most tokens that a bucket holds: one at least, or nothing would ever be accepted."""
    return max(rate * BURST_SECONDS, 1.0)
