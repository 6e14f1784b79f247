"""A rogue scheduler at a real executor service: what it must be refused, it is."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor_svc.runner import RunnerLimits
from executor_svc.service import ExecutorServer
from executor_svc.virtual import VirtualRunner
from executor_svc.wire import Identity
from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve_client.chaos import rogue_scheduler
from nanoserve_client.chaos.bad_plans import BadPlan, all_bad_plans

LIMITS = RunnerLimits(
    num_blocks=64,
    block_size=16,
    max_num_seqs=8,
    max_model_len=256,
    max_num_batched_tokens=256,
    max_num_decode_steps=4,
    max_plans_in_flight=4,
    vocab_size=512,
)


def started(folder: Path) -> ExecutorServer:
    server = ExecutorServer(f"unix:{folder / 'executor'}")
    server.start(VirtualRunner(LIMITS), Identity("instance", "model", "weights", "0"))
    return server


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[str]:
    server = started(tmp_path)
    yield server.address
    assert server.stop(5.0)


@pytest.mark.parametrize("bad", all_bad_plans(), ids=lambda bad: bad.field or "rule")
def test_each_bad_plan_is_refused_by_the_name_of_its_field(executor: str, bad: BadPlan):
    async def run() -> None:
        async with rogue_scheduler.connected(executor) as stub:
            call = await rogue_scheduler.opened(stub)
            assert call is not None
            assert await rogue_scheduler.try_bad_plan(call, bad) == ""
            call.cancel()

    asyncio.run(run())


def test_a_good_plan_is_not_taken_for_a_refused_bad_one(executor: str):
    async def run() -> None:
        async with rogue_scheduler.connected(executor) as stub:
            call = await rogue_scheduler.opened(stub)
            assert call is not None
            assert "was answered" in await rogue_scheduler.try_bad_plan(
                call, BadPlan(pb.StepPlan(step_id=1), "step_id")
            )
            call.cancel()

    asyncio.run(run())


def test_an_executor_that_left_is_no_answer_to_a_bad_plan(tmp_path: Path):
    async def run() -> None:
        server = started(tmp_path)
        async with rogue_scheduler.connected(server.address) as stub:
            call = await rogue_scheduler.opened(stub)
            assert await asyncio.to_thread(server.stop, 5.0)
            with pytest.raises(rogue_scheduler.ExecutorLeft):
                await rogue_scheduler.try_bad_plan(call, all_bad_plans()[0])

    asyncio.run(run())


@pytest.mark.parametrize("way", rogue_scheduler.INTRUSIONS)
def test_an_executor_that_is_away_refuses_no_intruder(tmp_path: Path, way: str):
    with pytest.raises(rogue_scheduler.ExecutorLeft):
        asyncio.run(rogue_scheduler.intrude(f"unix:{tmp_path / 'nobody'}", way))


def test_a_take_over_says_whether_it_may_have_fenced_somebody(tmp_path: Path, executor: str):
    away = rogue_scheduler.TakeOver(f"unix:{tmp_path / 'nobody'}", "leave", random.Random(1))
    with pytest.raises(rogue_scheduler.ExecutorLeft):
        asyncio.run(away.run())
    assert not away.may_have_fenced
    there = rogue_scheduler.TakeOver(executor, "leave", random.Random(1))
    assert asyncio.run(there.run()) == ""
    assert there.may_have_fenced


@pytest.mark.parametrize("way", rogue_scheduler.INTRUSIONS)
def test_no_intruder_gets_past_a_scheduler_that_has_the_executor(executor: str, way: str):
    async def run() -> None:
        async with rogue_scheduler.connected(executor) as stub:
            call = await rogue_scheduler.opened(stub)
            assert call is not None
            assert await rogue_scheduler.intrude(executor, way) == ""
            assert (await stub.Describe(pb.DescribeRequest())).session_alive
            call.cancel()

    asyncio.run(run())


def test_an_intrusion_that_succeeds_is_told(executor: str):
    assert "answered opened" in asyncio.run(rogue_scheduler.intrude(executor, "no_take_over"))


@pytest.mark.parametrize("way", rogue_scheduler.TAKE_OVERS)
def test_an_executor_that_was_taken_over_goes_on_for_the_next(executor: str, way: str):
    async def epoch() -> int:
        async with rogue_scheduler.connected(executor) as stub:
            return (await stub.Describe(pb.DescribeRequest())).epoch

    async def run() -> None:
        before = await epoch()
        assert await rogue_scheduler.TakeOver(executor, way, random.Random(1)).run() == ""
        assert await rogue_scheduler.TakeOver(executor, way, random.Random(2)).run() == ""
        num_opened = await epoch() - before
        assert num_opened == 2 if way != "bad_plans" else num_opened >= 4  # of which each is several

    asyncio.run(run())
