"""Profiles of an executor: refused by name, begun and ended while the device is idle, ended by themselves."""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from executor_plans import TINY, ints, make_plan
from session_client import TIMEOUT_SECONDS, Gate, Stream, first_plan, serving

from executor_svc.config import ExecutorConfig
from executor_svc.process import build_profiling
from executor_svc.profile import profiler as profiler_module
from executor_svc.profile.profiler import Profiling
from executor_svc.profile.spans import StepSpans
from executor_svc.virtual import VirtualRunner
from executor_svc.virtual.build import build_virtual_runner
from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from nanoserve.profiles import MAX_STEPS, Span

PRECONDITION, INVALID = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT


def start(channel: grpc.Channel, **fields: Any) -> None:
    ExecutorServiceStub(channel).StartProfile(pb.StartProfileRequest(**fields), timeout=TIMEOUT_SECONDS)


def stop(channel: grpc.Channel) -> Any:
    return ExecutorServiceStub(channel).StopProfile(pb.StopProfileRequest(), timeout=TIMEOUT_SECONDS)


def expect_refusal(code: grpc.StatusCode, word: str, call: Any, *args: Any, **fields: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **fields)
    assert caught.value.code() is code
    assert word in caught.value.details()


def restarts(first: int, count: int) -> list[Any]:
    """Plans that begin row 0's sequence anew, so that there may be any number of them."""
    ids = range(first, first + count)
    return [dataclasses.replace(first_plan(step_id), release_rows=ints(0)) for step_id in ids]


def run_steps(stream: Stream, first: int, count: int) -> None:
    """Two in flight at a time."""
    plans = restarts(first, count)
    stream.plan(plans[0])
    for plan in plans[1:]:
        stream.plan(plan)
        stream.result()
    stream.result()


@pytest.fixture
def channel() -> Iterator[grpc.Channel]:
    with serving(VirtualRunner(TINY, checked=True), profiling=Profiling(None)) as channel:
        yield channel


@pytest.fixture
def stream(channel: grpc.Channel) -> Iterator[Stream]:
    """A session whose row 0 is ready to decode."""
    stream = Stream(channel).open("a", 0)
    stream.opened()
    stream.plan(first_plan())
    stream.result()
    yield stream
    stream.close()


class IdleTrace:
    """A device's trace that sees, when it begins and ends, which steps are launched and not finished."""

    def __init__(self, gate: Gate, folder: Path) -> None:
        self.events: list[str] = []
        self._gate, self._path = gate, folder / "trace.json.gz"

    def start(self) -> None:
        self._note("start")

    def stop(self) -> None:
        self._note("stop")

    def write(self) -> Path:
        self._path.write_bytes(b"a trace")
        return self._path

    def _note(self, what: str) -> None:
        num_finished = sum(isinstance(entry, int) for entry in self._gate.history)
        assert self._gate.launched.qsize() == num_finished, "steps are under way"
        self.events.append(what)


def test_without_the_flag_profiles_are_refused_by_its_name() -> None:
    with serving() as channel:
        expect_refusal(PRECONDITION, "--profile-dir", start, channel)
        expect_refusal(PRECONDITION, "--profile-dir", stop, channel)


@pytest.mark.parametrize("below", ["file", "file/folder"])
def test_a_folder_that_cannot_be_written_to_stops_the_start_by_the_flag_s_name(
    tmp_path: Path, below: str
) -> None:
    (tmp_path / "file").touch()
    config = ExecutorConfig(virtual=True, profile_dir=str(tmp_path / below))
    with pytest.raises(ValueError, match=r"^--profile-dir: "):
        build_profiling(config, build_virtual_runner(config, None))


def test_wrong_numbers_second_starts_and_stops_of_nothing_are_refused_by_name(channel: grpc.Channel) -> None:
    for wrong in (-1, MAX_STEPS + 1):
        expect_refusal(INVALID, "num_steps", start, channel, num_steps=wrong)
    expect_refusal(PRECONDITION, "no profile", stop, channel)
    start(channel)
    expect_refusal(PRECONDITION, "a profile is being recorded already", start, channel)
    assert stop(channel).num_steps == 0
    expect_refusal(PRECONDITION, "no profile", stop, channel)


def test_a_profile_ends_by_itself_after_its_steps_and_another_may_begin(
    channel: grpc.Channel, stream: Stream
) -> None:
    start(channel, num_steps=5)
    run_steps(stream, 2, 12)
    profile = stop(channel)
    assert profile.num_steps == 5
    assert {span.step_id for span in profile.spans} == {2, 3, 4, 5, 6}
    start(channel, num_steps=2)
    run_steps(stream, 14, 2)
    start_again = stop(channel)
    assert {span.step_id for span in start_again.spans} == {14, 15}


def test_a_profile_that_nobody_stops_ends_by_its_time_and_gives_way() -> None:
    with serving(profiling=Profiling(None, max_seconds=0.01)) as channel:
        start(channel)
        for _ in range(1000):
            with contextlib.suppress(grpc.RpcError):
                start(channel)
                return
        pytest.fail("the profile goes on")


def test_each_step_is_decoded_launched_run_and_answered_in_this_order(
    channel: grpc.Channel, stream: Stream
) -> None:
    start(channel)
    stream.plan(*restarts(2, 2), make_plan(4, decode_rows=ints(0), num_decode_steps=3))
    for _ in range(5):
        stream.result()
    profile = stop(channel)
    assert profile.num_steps == 5
    for step_id, passes in ((2, 1), (3, 1), (4, 3)):
        spans = {(span.name, span.sub_step): span for span in profile.spans if span.step_id == step_id}
        assert len(spans) == 2 + 2 * passes
        assert spans["decode", 0].end_ns == spans["launch", 0].begin_ns
        for index in range(passes):
            run, answer = spans["step", index], spans["encode", index]
            assert run.lane == "device"
            assert run.begin_ns <= run.end_ns <= answer.begin_ns <= answer.end_ns
            if index:
                assert run.begin_ns >= spans["step", index - 1].end_ns


def test_steps_sent_before_the_scheduler_began_are_left_out(channel: grpc.Channel, stream: Stream) -> None:
    start(channel, num_steps=3, after_step_id=4)
    run_steps(stream, 2, 8)
    assert {span.step_id for span in stop(channel).spans} == {5, 6, 7}


def test_another_session_ends_the_profile(channel: grpc.Channel, stream: Stream) -> None:
    start(channel)
    run_steps(stream, 2, 2)
    stream.rest()
    other = Stream(channel).open("a", 1)
    other.opened()
    other.plan(first_plan(2))
    other.result()
    profile = stop(channel)
    assert profile.num_steps == 2
    assert len([span for span in profile.spans if span.name == "launch"]) == 2
    other.close()


def test_the_trace_begins_and_ends_only_while_the_device_is_idle(tmp_path: Path) -> None:
    gate = Gate(2)
    trace = IdleTrace(gate, tmp_path)
    with serving(gate.runner(), profiling=Profiling(trace)) as channel:
        stream = Stream(channel).open("a", 0)
        stream.opened()
        stream.plan(first_plan(), *restarts(2, 1))
        stream.result()
        assert [gate.entered.get(timeout=TIMEOUT_SECONDS) for _ in range(2)] == [1, 2]
        starting = threading.Thread(target=start, args=(channel,), kwargs={"num_steps": 4})
        starting.start()
        starting.join(0.05)
        assert trace.events == []
        gate.let_through(2)
        starting.join(TIMEOUT_SECONDS)
        stream.result()
        assert trace.events == ["start"]
        run_steps(stream, 3, 40)
        profile = stop(channel)
        assert trace.events == ["start", "stop"]
        assert (profile.path, profile.trace) == (str(tmp_path / "trace.json.gz"), b"a trace")
        stream.close()


def test_a_step_that_hangs_refuses_a_profile_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiler_module, "_QUIET_SECONDS", 0.05)
    gate = Gate(1)
    trace = IdleTrace(gate, tmp_path)
    with serving(gate.runner(), profiling=Profiling(trace)) as channel:
        stream = Stream(channel).open("a", 0)
        stream.opened()
        stream.plan(first_plan())
        gate.entered.get(timeout=TIMEOUT_SECONDS)
        expect_refusal(PRECONDITION, "do not end", start, channel)
        gate.let_through(1)
        assert stream.result().last
        start(channel)
        assert trace.events == ["start"]
        stop(channel)
        stream.close()


def test_a_trace_that_cannot_begin_is_a_refusal_and_steps_go_on(tmp_path: Path) -> None:
    class Broken(IdleTrace):
        def start(self) -> None:
            raise RuntimeError("no counters")

    with serving(profiling=Profiling(Broken(Gate(), tmp_path))) as channel:
        expect_refusal(PRECONDITION, "no counters", start, channel)
        expect_refusal(PRECONDITION, "no profile", stop, channel)
        stream = Stream(channel).open("a", 0)
        stream.opened()
        stream.plan(first_plan())
        assert stream.result().last
        stream.close()


def test_the_device_lane_keeps_measured_lengths_and_ends_no_step_after_its_result() -> None:
    spans = StepSpans(MAX_STEPS)
    results = [(1, 1_000, 400, 0), (2, 1_250, 200, 50), (3, 2_000, 300, 100)]
    for step_id, *_ in results:
        spans.launched(1, step_id, 1, 0, 1, 2)
    for step_id, ready_ns, device_ns, idle_ns in results:
        spans.answered(1, step_id, 0, ready_ns, device_ns, idle_ns)
    device = [span for span in spans.spans() if span.lane == "device"]
    assert device == [
        Span("device", "step", 1, 600, 1_000),
        Span("device", "step", 2, 1_050, 1_250),
        Span("device", "step", 3, 1_350, 1_650),
    ]
