"""How long a step may take before it counts as hung: the same rule in the scheduler and in the executor's parent.

A limit that is too short lies: it ends an executor that works. So it is many times what such steps took of late, never
under 10 s, and counted in ticks of whoever watches: where that process was held up itself, no time passes.
"""

_MIN_SECONDS = 10.0
# Covers, beside what others on the machine do, that attention costs more than in proportion to a step's tokens.
_FACTOR = 20.0
# Until a step was seen. A processor that needs more than 20 times this for a token is taken to hang.
_SECONDS_PER_TOKEN = 0.01
# How much of a size's slowest step is forgotten with each one that was faster.
_DECAY = 0.05
TICK_SECONDS = 0.5


class StepLimits:
    """Learns how long steps take, by their tokens. Sizes are told apart by powers of two."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        size = num_tokens.bit_length()
        known = self._seconds.get(size, 0.0)
        self._seconds[size] = seconds if seconds >= known else known + _DECAY * (seconds - known)

    def limit(self, num_tokens: int) -> float:
        """How many seconds a step of so many tokens may take: max(10 s, 20 x predicted)."""
        return max(_MIN_SECONDS, _FACTOR * self._predicted(num_tokens))

    def _predicted(self, num_tokens: int) -> float:
        size = num_tokens.bit_length()
        if size in self._seconds:
            return self._seconds[size]
        smaller = max((other for other in self._seconds if other < size), default=None)
        if smaller is not None:
            # So many times the tokens take so many times as long at most, but for attention: see _FACTOR.
            return self._seconds[smaller] * 2.0 ** (size - smaller)
        larger = min(self._seconds, default=None)
        return self._seconds[larger] if larger is not None else _SECONDS_PER_TOKEN * num_tokens


class StepClock:
    """Counts for how long one step has been the oldest under way."""

    def __init__(self) -> None:
        self._oldest: object = None
        self._seconds = 0.0

    def tick(self, oldest: object, elapsed_seconds: float) -> float:
        """Returns for how many seconds `oldest` (None: nothing is under way) has been; to be called each tick.

        `elapsed_seconds` since the last tick count as two ticks at most.
        """
        if oldest is None or oldest != self._oldest:
            self._oldest, self._seconds = oldest, 0.0
        else:
            self._seconds += min(elapsed_seconds, 2 * TICK_SECONDS)
        return self._seconds
