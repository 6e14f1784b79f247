"""A profile as one Chrome trace, for Perfetto or chrome://tracing: a process for each lane, a thread for each track."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from nanoserve.profiles import BOUNDARY, DEVICE, EXECUTOR_HOST, SCHEDULER, Profile, Span
from nanoserve_client.torch_events import (
    NO_EVENTS,
    Event,
    TorchEvents,
    device_delay_us,
    note_steps,
    read_torch_trace,
    within,
)

LANES = (SCHEDULER, BOUNDARY, EXECUTOR_HOST, DEVICE)
_PIDS = {lane: pid for pid, lane in enumerate(LANES, 1)}
# Tracks of spans that no thread did; those of the boundary overlap and take as many as they need.
_STEPS_TRACK = 0
_FIRST_TRACKS = {"plan": 1, "result": 101}
_THREAD_NAMES = {"schedule": "engine loop", "launch": "launching thread", "encode": "answering thread"}


def chrome_trace(profile: Profile) -> dict[str, Any]:
    """The whole trace, in microseconds from the first span on. ValueError where torch's part has no clock."""
    torch_events = read_torch_trace(profile.trace) if profile.trace else NO_EVENTS
    note_steps(torch_events, (span for span in profile.spans if span.name == "launch"))
    spans = _true_to_kernels(profile.spans, torch_events)
    origin_ns = min((span.begin_ns for span in spans), default=0)
    tracks = _Tracks()
    events = [_span_event(span, tracks.of(span), origin_ns) for span in spans]
    if spans:
        end_us = max(span.end_ns for span in spans) / 1e3
        events += _torch(torch_events, spans, tracks, origin_ns / 1e3, end_us)
    return {
        "traceEvents": [*tracks.names(), *events],
        "displayTimeUnit": "ms",
        "otherData": {"num_steps": profile.num_steps, "origin_monotonic_ns": origin_ns},
    }


def _true_to_kernels(spans: Iterable[Span], events: TorchEvents) -> list[Span]:
    """The spans, the device's moved to where its kernels were."""
    on_device = [span for span in spans if span.lane == DEVICE]
    delay_ns = round(device_delay_us(events, on_device) * 1e3)
    return [
        replace(span, begin_ns=span.begin_ns + delay_ns, end_ns=span.end_ns + delay_ns)
        if span.lane == DEVICE
        else span
        for span in spans
    ]


def _span_event(span: Span, track: int, origin_ns: int) -> Event:
    return {
        "ph": "X",
        "cat": span.lane,
        "name": f"{span.name} {span.step_id}",
        "pid": _PIDS[span.lane],
        "tid": track,
        "ts": (span.begin_ns - origin_ns) / 1e3,
        "dur": (span.end_ns - span.begin_ns) / 1e3,
        "args": {"kind": span.name, "step_id": span.step_id, "sub_step": span.sub_step},
    }


def _torch(
    events: TorchEvents, spans: Iterable[Span], tracks: "_Tracks", begin_us: float, end_us: float
) -> Iterator[Event]:
    host_threads = frozenset(span.thread_id for span in spans if span.lane == EXECUTOR_HOST)
    for event in within((*events.complete, *events.flows), begin_us, end_us):
        lane = events.lane(event, host_threads)
        is_stream = (event["pid"], event["tid"]) in events.device_tracks
        tracks.name(lane, event["tid"], f"{'stream' if is_stream else 'thread'} {event['tid']}")
        yield {**event, "ts": event["ts"] - begin_us, "pid": _PIDS[lane]}


class _Tracks:
    """Which track each span is on, and what the tracks are called."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, int], str] = {}
        self._ends: dict[int, int] = {}
        """When each track of the boundary is free again."""

    def of(self, span: Span) -> int:
        """The track of a span; spans come in the order of their beginnings."""
        if span.lane == DEVICE:
            track = _STEPS_TRACK
            self.name(DEVICE, track, "steps")
        elif span.lane == BOUNDARY:
            track = _FIRST_TRACKS[span.name]
            while self._ends.get(track, span.begin_ns) > span.begin_ns:
                track += 1
            self._ends[track] = span.end_ns
            self.name(BOUNDARY, track, f"{span.name}s on their way")
        else:
            track = span.thread_id
            if span.name in _THREAD_NAMES:
                self.name(span.lane, track, _THREAD_NAMES[span.name])
        return track

    def name(self, lane: str, track: int, name: str) -> None:
        """Names a track that has no name yet."""
        self._names.setdefault((lane, track), name)

    def names(self) -> Iterator[Event]:
        """The events that name lanes and tracks, and put them in order."""
        for lane, pid in _PIDS.items():
            yield _named("process_name", pid, 0, {"name": lane})
            yield _named("process_sort_index", pid, 0, {"sort_index": pid})
        for (lane, track), name in self._names.items():
            yield _named("thread_name", _PIDS[lane], track, {"name": name})


def _named(kind: str, pid: int, tid: int, args: dict[str, Any]) -> Event:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": args}
