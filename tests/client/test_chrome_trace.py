"""The merged trace: torch's events on the clock of the spans, in their lanes, with the steps that they belong to."""

import gzip
import json
from typing import Any

import pytest

from nanoserve.profiles import CLOCK_MARK, Profile, Span
from nanoserve_client.chrome_trace import LANES, chrome_trace

READER, ANSWERER, WORKER, HOST_PID = 11, 12, 13, 99
# The trace's clock is this far ahead of CLOCK_MONOTONIC.
TORCH_AHEAD_US = 4_000_000_000_000.25
SPANS = (
    Span("scheduler", "send", 1, 1_000_000, 1_010_000, thread_id=5),
    Span("boundary", "plan", 1, 1_000_000, 1_100_000),
    Span("scheduler", "send", 2, 1_050_000, 1_060_000, thread_id=5),
    Span("boundary", "plan", 2, 1_050_000, 1_200_000),
    Span("executor host", "launch", 1, 1_100_000, 1_150_000, thread_id=READER),
    Span("device", "step", 1, 1_120_000, 1_320_000),
    Span("executor host", "launch", 2, 1_200_000, 1_250_000, thread_id=READER),
    Span("device", "step", 2, 1_330_000, 1_530_000),
    Span("executor host", "encode", 1, 1_380_000, 1_390_000, thread_id=ANSWERER),
)


def event(category: str, name: str, us: float, dur: float, pid: int, tid: int, **args: Any) -> dict[str, Any]:
    """An event of torch's, at a time of CLOCK_MONOTONIC."""
    ts = us + TORCH_AHEAD_US
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "ts": ts,
        "dur": dur,
        "pid": pid,
        "tid": tid,
        "args": args,
    }


def flow(phase: str, us: float, pid: int, tid: int) -> dict[str, Any]:
    """One end of the arrow from a call to what it put on the device."""
    ts = us + TORCH_AHEAD_US
    return {"ph": phase, "cat": "ac2g", "name": "ac2g", "id": 7, "ts": ts, "pid": pid, "tid": tid}


MARKS = [
    event("user_annotation", f"{CLOCK_MARK}900000", 905.5, 1, HOST_PID, 50),  # the first is late
    event("user_annotation", f"{CLOCK_MARK}910000", 910.0, 1, HOST_PID, 50),
]


def merged(*events: dict[str, Any], spans: tuple[Span, ...] = SPANS) -> list[dict[str, Any]]:
    torch_trace = gzip.compress(json.dumps({"traceEvents": [*MARKS, *events]}).encode())
    return chrome_trace(Profile("", 2, spans, torch_trace))["traceEvents"]


def lane(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """What a lane holds, in time order."""
    (pid,) = [e["pid"] for e in events if e["name"] == "process_name" and e["args"]["name"] == name]
    return sorted((e for e in events if e["pid"] == pid and e["ph"] != "M"), key=lambda e: e["ts"])


def test_spans_alone_make_all_lanes_in_order_and_overlapping_plans_have_tracks_of_their_own():
    events = chrome_trace(Profile("", 2, SPANS, b""))["traceEvents"]
    assert [e["args"]["name"] for e in events if e["name"] == "process_name"] == list(LANES)
    assert [(e["name"], e["ts"], e["dur"]) for e in lane(events, "device")] == [
        ("step 1", 120.0, 200.0),
        ("step 2", 330.0, 200.0),
    ]
    one, two = lane(events, "boundary")
    assert one["tid"] != two["tid"]
    assert [e["args"]["step_id"] for e in (one, two)] == [1, 2]
    assert {e["tid"] for e in lane(events, "executor host")} == {READER, ANSWERER}


def test_kernels_are_on_the_device_with_the_step_that_launched_them_and_steps_are_where_their_kernels_are():
    events = merged(
        event("cuda_runtime", "cudaGraphLaunch", 1_110, 5, HOST_PID, READER, correlation=7),
        event("cuda_runtime", "cudaEventRecord", 1_205, 5, HOST_PID, READER, correlation=6),
        event("cuda_runtime", "cudaGraphLaunch", 1_210, 5, HOST_PID, 2**40, correlation=8),
        event("cuda_runtime", "cudaEventQuery", 1_215, 5, HOST_PID, ANSWERER, correlation=9),
        event("kernel", "attention", 1_130, 20, 0, 7, correlation=7, stream=7),
        event("kernel", "sample", 1_290, 10, 0, 7, correlation=7, stream=7),
        event("kernel", "sample", 1_500, 10, 0, 7, correlation=8, stream=7),
        event("gpu_memcpy", "Memcpy DtoH", 1_301, 30, 0, 20, correlation=7, stream=20),
        flow("s", 1_110, HOST_PID, READER),
        flow("f", 1_130, 0, 7),
    )
    device = lane(events, "device")
    kernels = [e for e in device if e.get("cat") == "kernel"]
    assert [(e["args"]["step_id"], round(e["ts"])) for e in kernels] == [(1, 130), (1, 290), (2, 500)]
    assert [e["args"]["step_id"] for e in device if e.get("cat") == "gpu_memcpy"] == [1]
    # The kernels end at 300 and 510, 20 us before the spans said.
    steps = [e for e in device if e.get("cat") == "device"]
    assert [(round(e["ts"]), e["dur"]) for e in steps] == [(100, 200.0), (310, 200.0)]
    host = lane(events, "executor host")
    calls = [(e["tid"], e["args"].get("step_id")) for e in host if e.get("cat") == "cuda_runtime"]
    assert calls == [(READER, 1), (READER, 2), (2**40, None), (ANSWERER, None)]
    assert [e["tid"] for e in host if e["ph"] == "s"] == [READER]
    assert [e["tid"] for e in device if e["ph"] == "f"] == [7]


def test_without_a_gpu_the_worker_s_operators_are_the_device_s():
    events = merged(
        event("cpu_op", "aten::mm", 1_130, 20, HOST_PID, WORKER),
        event("cpu_op", "aten::slice", 1_382, 2, HOST_PID, ANSWERER),
    )
    assert [e["name"] for e in lane(events, "device")] == ["step 1", "aten::mm", "step 2"]
    assert "aten::slice" in [e["name"] for e in lane(events, "executor host")]


def test_what_torch_saw_of_other_steps_and_of_itself_is_left_out():
    events = merged(
        event("cpu_op", "aten::before", 990, 2, HOST_PID, WORKER),
        event("cpu_op", "aten::after", 1_600, 2, HOST_PID, WORKER),
        event("Trace", "PyTorch Profiler (0)", 1_200, 2, HOST_PID, WORKER),
    )
    names = {e["name"] for e in events}
    assert not names & {"aten::before", "aten::after", "PyTorch Profiler (0)"}
    assert not any(name.startswith(CLOCK_MARK) for name in names)


def test_a_trace_without_marks_is_refused_and_a_profile_without_steps_is_empty():
    torch_trace = gzip.compress(b'{"traceEvents": []}')
    with pytest.raises(ValueError, match="nanoserve clock"):
        chrome_trace(Profile("", 2, SPANS, torch_trace))
    assert {e["ph"] for e in merged(spans=())} == {"M"}
