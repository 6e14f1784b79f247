"""What the link to the executor tells the engine."""

from dataclasses import dataclass

from scheduler_svc.core.step import Session
from scheduler_svc.wire import StepFailed, StepReport


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """Plans may be sent."""

    session: Session
    epoch: int
    weights_fingerprint: str


@dataclass(frozen=True, slots=True)
class SessionLost:
    """Plans sent and not answered are void. The link tries to open another session."""

    reason: str


@dataclass(frozen=True, slots=True)
class ExecutorAway:
    """There has been no session for the time allowed. The link goes on trying."""

    reason: str


@dataclass(frozen=True, slots=True)
class Fenced:
    """Another scheduler has taken the executor over. The link has stopped."""

    reason: str


@dataclass(frozen=True, slots=True)
class LinkFailed:
    """The executor is not one that this scheduler can work with. The link has stopped."""

    reason: str


LinkEvent = SessionOpened | StepReport | StepFailed | SessionLost | ExecutorAway | Fenced | LinkFailed
