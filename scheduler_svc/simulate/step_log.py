"""From a recording to measured steps: what each forward pass computed and read, and how long the device took for it.

A plan says what it computes only as changes. So this follows how many positions of each row are computed, sub-step by
sub-step, and joins that with the timing that the result brought. What failed or was never answered is left out.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve.executor.v1.recording_pb2 import RecordingEntry
from scheduler_svc.replay.reader import PlanView, RecordingError


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """One forward pass: what it computed and read as in a step log (calibrate.py), and its times."""

    step_id: int
    sub_step: int
    num_tokens: int
    num_context_tokens: int
    device_ns: int
    overhead_ns: int | None = None
    """From the sending of its plan to its result, but for the device's time: all that is between scheduler and device.
    Only of a plan's last sub-step, and where no other plan was unanswered when it was sent, so that it waited for none.
    """

    def to_line(self) -> str:
        """A line of a step log, without its end."""
        names = ("step_id", "sub_step", "num_tokens", "num_context_tokens", "device_ns")
        return json.dumps({name: getattr(self, name) for name in names})


@dataclass(slots=True)
class _InFlight:
    """A plan without its last result."""

    step_id: int
    sizes: list[tuple[int, int]]
    """Tokens computed and KV positions read, of each sub-step."""
    sent_ns: int
    was_alone: bool
    device_ns: int = 0


@dataclass(slots=True)
class StepLogReader:
    """Reads the steps of a recording's entries, the header first."""

    executor: pb.ExecutorDescription = field(default_factory=pb.ExecutorDescription)
    """Of the last session read so far."""
    _lengths: dict[int, int] = field(default_factory=dict)
    """Positions of each row that are computed or planned."""
    _in_flight: deque[_InFlight] = field(default_factory=deque)

    def steps(self, entries: Iterable[RecordingEntry]) -> Iterator[MeasuredStep]:
        """Yields the steps that ran, in order; RecordingError where plans and results do not belong together."""
        for entry in entries:
            try:
                match entry.WhichOneof("entry"):
                    case "opened":
                        self.executor = entry.opened.description
                        self._lengths.clear()
                        self._in_flight.clear()
                    case "plan":
                        self._take_plan(PlanView.of(entry.plan), entry.time_ns)
                    case "result" if entry.result.status == pb.STEP_STATUS_OK:
                        yield self._take_result(entry.result, entry.time_ns)
            except (KeyError, IndexError, ValueError) as error:
                raise RecordingError("plans and results do not fit; see verify-recording") from error

    def _take_plan(self, plan: PlanView, time_ns: int) -> None:
        lengths = self._lengths
        for row in plan.release_rows:
            del lengths[row]
        for start in plan.starts:
            lengths[start.row] = start.num_computed_tokens
        for run in plan.prefills:
            lengths[run.row] += run.num_tokens
        num_tokens = sum(run.num_tokens for run in plan.prefills)
        num_context_tokens = sum(lengths[run.row] for run in plan.prefills)
        sizes = []
        for sub_step in range(plan.num_decode_steps):
            steps = zip(plan.decode_rows, plan.decode_row_steps, strict=True)
            for row in [row for row, count in steps if count > sub_step]:
                lengths[row] += 1
                num_tokens += 1
                num_context_tokens += lengths[row]
            sizes.append((num_tokens, num_context_tokens))
            num_tokens = num_context_tokens = 0
        self._in_flight.append(_InFlight(plan.step_id, sizes, time_ns, was_alone=not self._in_flight))

    def _take_result(self, result: pb.StepResult, time_ns: int) -> MeasuredStep:
        planned, device_ns = self._in_flight[0], result.timing.device_ns
        if planned.step_id != result.step_id:
            raise ValueError("a result of another plan")
        planned.device_ns += device_ns
        overhead_ns = None
        if result.last:
            self._in_flight.popleft()
            if planned.was_alone:
                overhead_ns = max(0, time_ns - planned.sent_ns - planned.device_ns)
        sizes = planned.sizes[result.sub_step]
        return MeasuredStep(result.step_id, result.sub_step, *sizes, device_ns, overhead_ns)
