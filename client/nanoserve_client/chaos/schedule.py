"""A run's faults, in order: made of a profile and a seed, and of nothing else."""

import random
from dataclasses import dataclass

from nanoserve_client.chaos.profile import FaultSpec, Profile

# Of a run's tokens: before the first of these a stream may not have begun, after the last none may be left.
_FIRST_SHARE, _LAST_SHARE = 0.02, 0.75


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a run."""

    kind: str
    target: str
    after: float
    """It comes once this share of the run's tokens, in [0, 1], has been received."""
    seconds: float
    """How long it lasts; 0 where it does not end, or is over at once."""
    count: int
    way: str
    """Which way of `intrude`, `take_over`, `tamper` and `poison`; empty: of others, or one that its seed picks."""
    seed: int
    """Of what is still to be drawn when it comes."""

    @property
    def name(self) -> str:
        """What it does to whom."""
        return f"{self.kind} {self.target}"

    def __str__(self) -> str:
        way = f" ({self.way})" if self.way else ""
        return f"{self.name}{way}" + (f" for {self.seconds:.2f} s" if self.seconds else "")


def draw_of_run(profile: Profile, seed: int, run: int) -> random.Random:
    """The generator that a run draws everything from."""
    return random.Random(f"{profile.name}/{seed}/{run}")


def make_schedule(profile: Profile, draw: random.Random) -> tuple[Fault, ...]:
    """The faults of one run, in the order in which they come."""
    specs = draw.choices(
        profile.faults,
        weights=[spec.weight for spec in profile.faults],
        k=draw.randint(*profile.faults_per_run),
    )
    return tuple(sorted((_make_fault(spec, draw) for spec in specs), key=lambda fault: fault.after))


def _make_fault(spec: FaultSpec, draw: random.Random) -> Fault:
    return Fault(
        kind=spec.kind,
        target=spec.target,
        after=draw.uniform(_FIRST_SHARE, _LAST_SHARE),
        seconds=draw.uniform(*spec.seconds) if spec.is_timed else 0.0,
        count=draw.randint(*spec.count),
        way=draw.choice(spec.ways) if spec.ways else "",
        seed=draw.getrandbits(64),
    )
