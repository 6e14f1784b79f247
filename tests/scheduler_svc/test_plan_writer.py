"""Messages are written one at a time, in the order in which they were sent, and not after the stream's end."""

import asyncio

import pytest
from scheduler_harness import run

from nanoserve.executor.v1 import executor_pb2 as pb
from scheduler_svc.plan_writer import PlanWriter


class Stream:
    """Takes a turn of the loop for each message; fails with `error` at the message that it is set for."""

    def __init__(self, error: Exception | None = None, failing_step: int = 0) -> None:
        self.begun: list[int] = []
        self.written: list[int] = []
        self._error, self._failing_step = error, failing_step

    async def write(self, request: pb.ExecuteRequest) -> None:
        assert len(self.begun) == len(self.written), "one at a time"
        self.begun.append(request.plan.step_id)
        await asyncio.sleep(0)
        if self._error is not None and request.plan.step_id == self._failing_step:
            raise self._error
        self.written.append(request.plan.step_id)


def message(step_id: int) -> pb.ExecuteRequest:
    return pb.ExecuteRequest(plan=pb.StepPlan(step_id=step_id))


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_messages_sent_in_one_turn_arrive_in_order():
    async def test() -> None:
        stream = Stream()
        writer = PlanWriter(stream)
        for step_id in (1, 2, 3):
            writer.send(message(step_id))
        await turns(8)
        writer.send(message(4))
        await turns(4)
        assert stream.written == [1, 2, 3, 4]
        await writer.close()

    run(test)


def test_a_message_is_under_way_before_what_was_to_run_next():
    async def test() -> None:
        stream = Stream()
        writer = PlanWriter(stream)
        begun: list[int] = []
        writer.send(message(1))
        asyncio.get_running_loop().call_soon(lambda: begun.extend(stream.begun))
        await turns(4)
        assert begun == [1]
        await writer.close()

    run(test)


def test_nothing_is_written_after_the_stream_or_the_writer_has_ended():
    async def test() -> None:
        stream = Stream(asyncio.InvalidStateError("the stream is over"), failing_step=2)
        writer = PlanWriter(stream)
        for step_id in (1, 2, 3):
            writer.send(message(step_id))
        await turns(8)
        writer.send(message(4))
        await turns(4)
        await writer.close()
        assert (stream.written, stream.begun) == ([1], [1, 2])
        closed = Stream()
        writer = PlanWriter(closed)
        for step_id in (1, 2):
            writer.send(message(step_id))
        await writer.close()
        writer.send(message(3))
        await turns(4)
        assert closed.written == []

    run(test)


def test_what_else_a_write_fails_with_is_told_when_the_writer_is_closed():
    async def test() -> None:
        writer = PlanWriter(Stream(ValueError("too large"), failing_step=1))
        writer.send(message(1))
        await turns(4)
        writer.send(message(2))
        with pytest.raises(ValueError, match="too large"):
            await writer.close()

    run(test)
