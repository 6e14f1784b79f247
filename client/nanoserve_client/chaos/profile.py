"""What kinds of faults a set of runs draws from, and what the services are started with: one TOML file each."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from nanoserve_client.chaos import rogue_executor, rogue_scheduler
from nanoserve_client.errors import InvalidRequest

PROCESSES = ("executor", "scheduler", "api_worker")
LINKS = ("executor_link", "client_link")
TARGETS: Mapping[str, tuple[str, ...]] = {
    "kill": PROCESSES,
    "pause": PROCESSES,
    "freeze": ("executor", "api_worker"),
    "terminate": ("executor", "scheduler"),
    "cut": LINKS,
    "refuse": LINKS,
    "stall": LINKS,
    "delay": LINKS,
    "leave": ("client",),
    "burst": ("client",),
    "intrude": ("executor",),
    "take_over": ("executor",),
    "tamper": ("executor",),
    "poison": ("client",),
}
"""The kinds of faults, and what each may hit; docs/reliability.md says what each does."""
WAYS: Mapping[str, Sequence[str]] = {
    "intrude": rogue_scheduler.INTRUSIONS,
    "take_over": rogue_scheduler.TAKE_OVERS,
    "tamper": (*rogue_executor.WAYS, rogue_executor.LIE),
    "poison": ("kill", "fail"),
}
"""How each of these kinds may be done."""
_TIMED = ("pause", "refuse", "stall", "delay")


@dataclass(frozen=True, slots=True)
class FaultSpec:
    """A kind of fault of a profile, drawn with probability `weight` over the sum of all weights."""

    kind: str
    target: str
    weight: float = 1.0
    seconds: tuple[float, float] = (0.2, 2.0)
    """How long it lasts, of kinds that end by themselves."""
    count: tuple[int, int] = (1, 4)
    """How many clients leave; how many requests are a burst."""
    ways: tuple[str, ...] = ()
    """Which of the ways of `intrude`, `take_over`, `tamper` and `poison`; empty: all."""

    def __post_init__(self) -> None:
        if self.kind not in TARGETS:
            raise InvalidRequest(f"fault.kind: {self.kind!r} is none of {', '.join(TARGETS)}")
        if self.target not in TARGETS[self.kind]:
            raise InvalidRequest(f"fault.target: {self.kind} may hit {', '.join(TARGETS[self.kind])}")
        if self.weight <= 0:
            raise InvalidRequest(f"fault.weight: must be more than 0, got {self.weight}")
        if unknown := set(self.ways) - set(WAYS.get(self.kind, ())):
            raise InvalidRequest(f"fault.ways: {min(unknown)!r} is no way of {self.kind}")
        _check_range("fault.seconds", self.seconds)
        _check_range("fault.count", self.count)

    @property
    def is_timed(self) -> bool:
        """Whether it lasts for `seconds`."""
        return self.kind in _TIMED


@dataclass(frozen=True, slots=True)
class Profile:
    """A set of runs. InvalidRequest, naming the field, where a value is none."""

    name: str
    summary: str
    faults: tuple[FaultSpec, ...]
    streams: tuple[int, int] = (8, 12)
    """How many requests a run has."""
    faults_per_run: tuple[int, int] = (1, 3)
    runs_per_stack: int = 100
    """Runs that the same processes see before they are ended, looked over and started anew."""
    run_seconds: float = 60.0
    """After that, and the time that restarts may take, a stream that has not ended is taken to hang."""
    api_workers: int = 0
    executor_flags: tuple[str, ...] = ()
    scheduler_flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.faults:
            raise InvalidRequest("fault: a profile has at least one")
        for name in ("streams", "faults_per_run"):
            _check_range(name, getattr(self, name), least=1)
        if self.runs_per_stack < 1 or self.run_seconds <= 0:
            raise InvalidRequest("runs_per_stack, run_seconds: must be at least 1, and more than 0")
        if self.api_workers == 0 and any(spec.target == "api_worker" for spec in self.faults):
            raise InvalidRequest("api_workers: must be at least 1 where one is hit")

    @property
    def needs_relay(self) -> bool:
        """Whether messages between scheduler and executor are read or changed."""
        return any(spec.kind in ("tamper", "poison") for spec in self.faults)


def profile_names() -> list[str]:
    """Names of the profiles that ship."""
    folder = resources.files("nanoserve_client.chaos") / "profiles"
    return sorted(
        entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name[-5:] == ".toml"
    )


def load_profile(name: str) -> Profile:
    """A profile that ships, by its name, or another by its path; InvalidRequest where it is no good."""
    path = Path(name)
    if path.suffix == ".toml":
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise InvalidRequest(f"--profile: cannot read {name!r}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"--profile: cannot read {name!r}: it is not in UTF-8") from error
    elif name in profile_names():
        text = (resources.files("nanoserve_client.chaos") / "profiles" / f"{name}.toml").read_text("utf-8")
    else:
        known = ", ".join(profile_names())
        raise InvalidRequest(f"--profile: {name!r} is neither a .toml file nor one of {known}")
    try:
        return parse_profile(path.stem, text)
    except InvalidRequest as error:
        raise InvalidRequest(f"--profile: {name}: {error}") from error


def parse_profile(name: str, text: str) -> Profile:
    """The profile that a TOML text says; InvalidRequest where it is no good."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest(str(error)) from error
    faults = tuple(_build(FaultSpec, entry) for entry in values.pop("fault", []))
    return _build(Profile, {**values, "name": name, "faults": faults})


_Record = TypeVar("_Record", FaultSpec, Profile)


def _build(kind: type[_Record], values: Mapping[str, Any]) -> _Record:
    """A dataclass of its fields' values, lists as tuples."""
    unknown = set(values) - {entry.name for entry in fields(kind)}
    if unknown:
        raise InvalidRequest(f"{min(unknown)}: no such field")
    given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    try:
        return kind(**given)
    except TypeError as error:
        raise InvalidRequest(str(error)) from error


def _check_range(name: str, bounds: tuple[float, float], least: float = 0) -> None:
    if len(bounds) != 2 or not least <= bounds[0] <= bounds[1]:
        raise InvalidRequest(f"{name}: must be two numbers from {least:g} up, the smaller first")
