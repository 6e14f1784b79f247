"""The events of torch's Chrome trace, moved to the clock of a profile's spans and told which step they belong to."""

import gzip
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from nanoserve.profiles import CLOCK_MARK, DEVICE, EXECUTOR_HOST, Span

Event = dict[str, Any]

_DEVICE_CATEGORIES = frozenset({"kernel", "gpu_memcpy", "gpu_memset", "gpu_user_annotation"})
_CALL_CATEGORIES = frozenset({"cuda_runtime", "cuda_driver"})
_KEPT_ARGS = ("correlation", "stream", "grid", "block", "bytes")


@dataclass(frozen=True, slots=True)
class TorchEvents:
    """What torch recorded; timestamps are microseconds of CLOCK_MONOTONIC."""

    complete: tuple[Event, ...]
    """Those with a duration."""
    flows: tuple[Event, ...]
    """From calls to the kernels that they launch."""
    device_tracks: frozenset[tuple[Any, Any]]
    """(pid, tid) of what is a stream of a device."""

    def lane(self, event: Event, host_threads: frozenset[int]) -> str:
        """Where an event belongs: without a GPU, the threads that are not the session's are the device."""
        if (event["pid"], event["tid"]) in self.device_tracks:
            return DEVICE
        return EXECUTOR_HOST if self.device_tracks or event["tid"] in host_threads else DEVICE


NO_EVENTS = TorchEvents((), (), frozenset())


def read_torch_trace(data: bytes) -> TorchEvents:
    """Reads a gzipped trace; ValueError where it has none of the marks that tell its clock."""
    events = json.loads(gzip.decompress(data))["traceEvents"]
    complete = [event for event in events if event.get("ph") == "X" and "dur" in event]
    # A mark's name is made a little before the mark begins: the least difference is the truest.
    differences = [
        event["ts"] - int(event["name"].removeprefix(CLOCK_MARK)) / 1e3
        for event in complete
        if event["name"].startswith(CLOCK_MARK)
    ]
    if not differences:
        raise ValueError(f"the trace has no event {CLOCK_MARK!r}")
    offset = min(differences)
    flows = [event for event in events if event.get("ph") in ("s", "f") and event.get("cat") == "ac2g"]
    for event in (*complete, *flows):
        event["ts"] -= offset
    kept = tuple(event for event in complete if "cat" in event and not event["name"].startswith(CLOCK_MARK))
    on_device = (event for event in kept if event["cat"] in _DEVICE_CATEGORIES)
    tracks = frozenset((event["pid"], event["tid"]) for event in on_device)
    return TorchEvents(tuple(event for event in kept if event["cat"] != "Trace"), tuple(flows), tracks)


def note_steps(events: TorchEvents, launches: Iterable[Span]) -> None:
    """Gives calls within a launch, and what they put on the device, the step's id; drops arguments of little use."""
    steps: dict[Any, int] = {}
    find = _Launches(launches)
    for event in events.complete:
        args = event.get("args", {})
        event["args"] = {name: args[name] for name in _KEPT_ARGS if name in args}
        on_host = (event["pid"], event["tid"]) not in events.device_tracks
        if not on_host or (launch := find.around(event)) is None:
            continue
        if event["tid"] == launch.thread_id:
            event["args"]["step_id"] = launch.step_id
        # Whatever the driver calls its thread: nobody else launches anything meanwhile.
        if event["cat"] in _CALL_CATEGORIES and "correlation" in args:
            steps[args["correlation"]] = launch.step_id
    for event in events.complete:
        step_id = steps.get(event["args"].get("correlation"))
        if event["cat"] in _DEVICE_CATEGORIES and step_id is not None:
            event["args"]["step_id"] = step_id


def device_delay_us(events: TorchEvents, steps: Sequence[Span]) -> float:
    """How much later than their spans say the device's steps ended by the kernels that they ran; 0 without any.

    The spans' lengths are exact, as the device measured them; only when the host learnt of their ends is not.
    """
    kernel_ends: dict[int, float] = {}
    for event in events.complete:
        if event["cat"] == "kernel" and (step_id := event["args"].get("step_id")) is not None:
            kernel_ends[step_id] = max(kernel_ends.get(step_id, 0.0), event["ts"] + event["dur"])
    span_ends = {span.step_id: span.end_ns / 1e3 for span in sorted(steps, key=lambda span: span.end_ns)}
    delays = [end - span_ends[step_id] for step_id, end in kernel_ends.items() if step_id in span_ends]
    return median(delays) if delays else 0.0


class _Launches:
    """Finds the launch that an event is within."""

    def __init__(self, launches: Iterable[Span]) -> None:
        self._launches = sorted(launches, key=lambda span: span.begin_ns)
        self._begins = [span.begin_ns / 1e3 for span in self._launches]

    def around(self, event: Event) -> Span | None:
        """The launch during which the event began; None where there is none."""
        index = bisect_right(self._begins, event["ts"]) - 1
        if index < 0:
            return None
        span = self._launches[index]
        return span if event["ts"] <= span.end_ns / 1e3 else None


def within(events: Iterable[Event], begin_us: float, end_us: float) -> Iterator[Event]:
    """Those that begin between two times: of steps that are recorded, not of their neighbours."""
    return (event for event in events if begin_us <= event["ts"] <= end_us)
