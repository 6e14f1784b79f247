"""Profiles through the scheduler: both sides' spans on one clock, refusals by name, an executor that is lost."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from scheduler_harness import Executor, Service, refused, run

from executor_svc.profile.profiler import Profiling
from nanoserve.profiles import MAX_STEPS, Profile, Span, decode_profile
from nanoserve.v1 import admin_pb2 as pb
from scheduler_svc.step_spans import StepSpans

PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


async def start(service: Service, num_steps: int = 0) -> None:
    await service.admin.StartProfile(pb.StartProfileRequest(num_steps=num_steps))


async def stop(service: Service) -> Profile:
    return decode_profile(await service.admin.StopProfile(pb.StopProfileRequest()))


def profiled(folder: Path, **config: Any) -> Service:
    """A service whose executor may be profiled."""
    service = Service(folder, **config)
    service.executor.profiling = Profiling(None)
    return service


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_each_step_goes_its_way_through_both_services_on_one_clock(tmp_path: Path, depth: int):
    async def test() -> None:
        async with profiled(tmp_path, pipeline_depth=depth) as service:
            await service.serving()
            # Plans are in flight when the profile begins: none of those that it holds may lack a side.
            busy = asyncio.ensure_future(service.generate("before", max_tokens=200, ignore_eos=True))
            await asyncio.sleep(0.01)
            await start(service, 40)
            answers = [service.generate(f"prompt {i}", max_tokens=60, ignore_eos=True) for i in range(3)]
            await asyncio.gather(busy, *answers)
            check(await stop(service), 40)

    run(test)


def check(profile: Profile, num_steps: int) -> None:
    """Every step has every span, in the order of its way; the engine's do not cross."""
    assert profile.num_steps == num_steps
    steps: dict[int, dict[tuple[str, str], Span]] = {}
    for span in profile.spans:
        assert span.begin_ns <= span.end_ns
        steps.setdefault(span.step_id, {})[span.lane, span.name] = span
    ids = sorted(steps)
    assert ids == list(range(ids[0], ids[0] + num_steps))
    for step in steps.values():
        assert len(step) == 11
        way = [
            step["scheduler", "schedule"].begin_ns,
            step["scheduler", "send"].begin_ns,
            step["executor host", "decode"].begin_ns,
            step["executor host", "launch"].begin_ns,
            step["executor host", "encode"].begin_ns,
            step["scheduler", "result"].begin_ns,
            step["scheduler", "update"].begin_ns,
            step["scheduler", "publish"].end_ns,
        ]
        assert way == sorted(way)
        plan, result = step["boundary", "plan"], step["boundary", "result"]
        assert (plan.begin_ns, plan.end_ns) == (way[1], way[3])
        assert (result.begin_ns, result.end_ns) == (way[4], way[5])
    nested(span for span in profile.spans if span.lane == "scheduler")


def nested(spans: Any) -> None:
    """Each span lies within the one that is open when it begins, or behind it."""
    open_ends: list[int] = []
    for span in sorted(spans, key=lambda span: (span.begin_ns, -span.end_ns)):
        while open_ends and open_ends[-1] <= span.begin_ns:
            open_ends.pop()
        assert not open_ends or span.end_ns <= open_ends[-1], span
        open_ends.append(span.end_ns)


def test_what_cannot_be_is_refused_by_name(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            for wrong in (-1, MAX_STEPS + 1):
                with refused(grpc.StatusCode.INVALID_ARGUMENT, "num_steps"):
                    await start(service, wrong)
            for _ in range(2):
                with refused(PRECONDITION):
                    await stop(service)
            for _ in range(2):
                with pytest.raises(grpc.aio.AioRpcError, match="--profile-dir"):
                    await start(service)

    run(test)


def test_a_second_start_is_refused_and_does_not_disturb_the_first(tmp_path: Path):
    async def test() -> None:
        async with profiled(tmp_path) as service:
            await service.serving()
            both = await asyncio.gather(start(service, 8), start(service, 8), return_exceptions=True)
            (error,) = [each for each in both if each is not None]
            assert isinstance(error, grpc.aio.AioRpcError)
            assert error.code() is PRECONDITION
            await service.generate("a prompt", max_tokens=20, ignore_eos=True)
            # The first has ended by itself: another may begin, and holds its own steps.
            await start(service, 5)
            await service.generate("a prompt", max_tokens=20, ignore_eos=True)
            check(await stop(service), 5)
            with refused(PRECONDITION):
                await stop(service)

    run(test)


class SlowTrace:
    """A device's trace that is written only when it may be."""

    def __init__(self, folder: Path) -> None:
        self.may_write = threading.Event()
        self._path = folder / "trace.json.gz"

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def write(self) -> Path:
        assert self.may_write.wait(20)
        self._path.write_bytes(b"a trace")
        return self._path


def test_a_start_while_the_last_trace_is_being_written_is_refused_and_loses_nothing(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path, executor=Executor(f"unix:{tmp_path}/executor")) as service:
            trace = SlowTrace(tmp_path)
            service.executor.profiling = Profiling(trace)
            service.executor.start()
            await service.serving()
            await start(service, 5)
            await service.generate("a prompt", max_tokens=20, ignore_eos=True)
            with refused(PRECONDITION):
                await start(service, 5)
            trace.may_write.set()
            profile = await stop(service)
            check(profile, 5)
            assert profile.trace == b"a trace"

    run(test)


def test_a_profile_of_an_executor_that_was_lost_is_over_and_another_may_begin(tmp_path: Path):
    async def test() -> None:
        async with profiled(tmp_path) as service:
            await service.serving()
            await start(service)
            answer = asyncio.ensure_future(service.generate("a prompt", max_tokens=100, ignore_eos=True))
            await asyncio.sleep(0.02)
            await service.executor.stop()
            service.executor.start()
            assert len((await answer).token_ids[0]) == 100
            with refused(PRECONDITION):
                await stop(service)
            await start(service, 4)
            await service.generate("a prompt", max_tokens=20, ignore_eos=True)
            check(await stop(service), 4)

    run(test)


def test_without_an_executor_a_profile_is_refused_as_unavailable(tmp_path: Path):
    async def test() -> None:
        async with profiled(tmp_path) as service:
            await service.serving()
            await service.executor.stop()
            with refused(grpc.StatusCode.UNAVAILABLE):
                await start(service)

    run(test)


def test_no_boundary_span_runs_backwards_where_clocks_differ():
    spans = StepSpans()
    spans.planned(1, 7, 100.0)
    spans.sent(7, 100.1)
    theirs = (Span("executor host", "launch", 7, 1, 2), Span("executor host", "decode", 7, 0, 1))
    joined = spans.joined(Profile("", 1, theirs, b""))
    assert {span.name for span in joined.spans} == {"schedule", "send", "launch", "decode"}


def test_plans_of_another_session_are_not_taken_for_those_of_the_first():
    spans = StepSpans()
    for epoch in (1, 2):
        spans.planned(epoch, 7, 100.0)
        spans.sent(7, 100.1)
    assert spans.is_over()
    joined = spans.joined(Profile("", 1, (Span("executor host", "launch", 7, 1, 2),), b""))
    assert [span.name for span in joined.spans if span.lane == "scheduler"] == ["schedule", "send"]
