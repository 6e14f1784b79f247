"""Where the time of steps went between two readings of a server's load: exact, since the load has running sums."""

from dataclasses import dataclass

from nanoserve.v1 import admin_pb2


@dataclass(frozen=True, slots=True)
class Steps:
    """Means a step, in milliseconds, of the steps whose results came between two readings; see StepTotals.

    A step is one forward pass: each of a plan's decode steps counts.
    """

    num_steps: int
    num_output_tokens: int
    num_preemptions: int
    device_ms: float
    host_ms: float
    queue_ms: float
    idle_ms: float
    round_trip_ms: float
    schedule_ms: float

    @property
    def idle_share(self) -> float:
        """Of the device: idle / (idle + device)."""
        return self.idle_ms / ((self.idle_ms + self.device_ms) or 1.0)

    @property
    def tokens_per_step(self) -> float:
        """Output tokens a step."""
        return self.num_output_tokens / max(1, self.num_steps)


def steps_between(before: admin_pb2.Load, after: admin_pb2.Load) -> Steps:
    """The steps between two readings of one server."""
    first, last = before.step_totals, after.step_totals
    num_steps = after.num_steps - before.num_steps
    scale = 1e3 / max(1, num_steps)
    return Steps(
        num_steps=num_steps,
        num_output_tokens=after.num_output_tokens - before.num_output_tokens,
        num_preemptions=after.num_preemptions - before.num_preemptions,
        device_ms=scale * (last.device_seconds - first.device_seconds),
        host_ms=scale * (last.host_seconds - first.host_seconds),
        queue_ms=scale * (last.queue_seconds - first.queue_seconds),
        idle_ms=scale * (last.idle_seconds - first.idle_seconds),
        round_trip_ms=scale * (last.round_trip_seconds - first.round_trip_seconds),
        schedule_ms=scale * (last.schedule_seconds - first.schedule_seconds),
    )
