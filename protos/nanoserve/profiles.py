"""Profiles as plain data: what nanoserve/v1/profile.proto and the two StopProfileResponses hold."""

from dataclasses import asdict, dataclass
from typing import Any

from nanoserve.v1 import profile_pb2 as pb

SCHEDULER, BOUNDARY, EXECUTOR_HOST, DEVICE = "scheduler", "boundary", "executor host", "device"
"""The lanes, in the order of a step's way."""
MAX_STEPS = 200
"""The most forward passes that a profile holds."""
MAX_SECONDS = 30.0
"""After this long a profile ends by itself: torch keeps every operator of a CPU in memory until then."""
CLOCK_MARK = "nanoserve clock "
"""What the names of a trace's clock events begin with; the rest is CLOCK_MONOTONIC at their beginning, nanoseconds."""


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a step's way; see ProfileSpan."""

    lane: str
    name: str
    step_id: int
    begin_ns: int
    end_ns: int
    sub_step: int = 0
    thread_id: int = 0


@dataclass(frozen=True, slots=True)
class Profile:
    """What was recorded; see StopProfileResponse."""

    path: str
    num_steps: int
    spans: tuple[Span, ...]
    trace: bytes


def encode_profile(profile: Profile, response: type[Any]) -> Any:
    """A profile as either StopProfileResponse."""
    spans = [pb.ProfileSpan(**asdict(span)) for span in profile.spans]
    return response(path=profile.path, num_steps=profile.num_steps, spans=spans, trace=profile.trace)


def decode_profile(message: Any) -> Profile:
    """The profile of either StopProfileResponse."""
    spans = tuple(
        Span(
            span.lane,
            span.name,
            span.step_id,
            span.begin_ns,
            span.end_ns,
            span.sub_step,
            span.thread_id,
        )
        for span in message.spans
    )
    return Profile(message.path, message.num_steps, spans, message.trace)
