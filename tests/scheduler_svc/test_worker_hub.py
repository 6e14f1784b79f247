"""The hub alone: whose events go where, and what a worker may not do."""

import asyncio
import socket
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoserve.scheduler.v1 import worker_pb2 as pb
from scheduler_svc import messages as msg
from scheduler_svc.core.request import Request
from scheduler_svc.frame_connection import FrameConnection
from scheduler_svc.framing import FrameError, frame
from scheduler_svc.worker_commands import encode_command
from scheduler_svc.worker_events import decode_event
from scheduler_svc.worker_hub import WorkerHub
from scheduler_svc.worker_keys import engine_key, worker_key, worker_number


@given(st.integers(0, 2**20), st.integers(0, 2**40 - 1))
def test_an_engine_key_holds_worker_and_key(number: int, key: int):
    whole = engine_key(number, key)
    assert (worker_number(whole), worker_key(whole)) == (number, key)


class Workers:
    """A hub with two workers whose frames are kept."""

    def __init__(self) -> None:
        self.commands: list[msg.Command] = []
        self.hub = WorkerHub(self.commands.append)
        self.frames: dict[int, list[bytes]] = {}
        self.numbers = [self.connect(), self.connect()]

    def connect(self) -> int:
        frames: list[bytes] = []
        number = self.hub.connect(frames.append, lambda: None)
        self.frames[number] = frames
        return number

    def send(self, number: int, *commands: msg.Command) -> None:
        frame = pb.WorkerFrame(commands=[encode_command(command) for command in commands])
        self.hub.take(number, frame.SerializeToString())

    def told(self, number: int) -> list[Any]:
        frames, self.frames[number][:] = list(self.frames[number]), []
        return [decode_event(event) for data in frames for event in pb.EngineFrame.FromString(data).events]


def submit(key: int, n: int = 1) -> msg.Submit:
    return msg.Submit(key, Request(f"r{key}", np.array([1], np.int32), 5, n=n))


async def turns() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


def test_a_lost_worker_aborts_its_requests_and_only_those():
    async def test() -> None:
        workers = Workers()
        one, other = workers.numbers
        workers.send(one, submit(7, n=2), submit(8))
        workers.send(other, submit(7))
        keys = [command.key for command in workers.commands]
        assert len(set(keys)) == 3
        workers.hub.receive(msg.Accepted(keys[0], (10, 11)))
        workers.hub.receive(msg.Refused(keys[1], msg.Problem(msg.Code.UNAVAILABLE, "no")))
        workers.hub.receive(msg.Accepted(keys[2], (12,)))
        await turns()
        workers.told(one), workers.told(other)
        workers.commands.clear()
        workers.hub.disconnect(one)
        assert workers.commands == [msg.Abort(keys[0])]
        tokens = msg.TokenBatch(np.array([10, 11, 12]), np.array([1, 2, 3], np.int32), np.zeros(3, np.int8))
        workers.hub.receive(msg.StepBatch(0.0, (), tokens, (msg.Ended(keys[0], 0),)))
        await turns()
        (step,) = workers.told(other)
        assert step.tokens.token_ids.tolist() == [1, 2, 3]
        assert step.ended == ()

    asyncio.run(test())


def test_tokens_go_to_all_that_have_requests_and_starts_and_ends_to_their_own():
    async def test() -> None:
        workers = Workers()
        idle = workers.connect()
        one, other = workers.numbers
        workers.send(one, submit(7))
        workers.send(other, submit(8))
        await turns()
        workers.told(one), workers.told(other), workers.told(idle)
        begun, over = (command.key for command in workers.commands)
        tokens = msg.TokenBatch(np.array([4, 9]), np.array([1, 2], np.int32), np.zeros(2, np.int8))
        workers.hub.receive(msg.StepBatch(1.5, (msg.Started(begun, 0),), tokens, (msg.Ended(over, 0),)))
        workers.hub.receive(msg.StepBatch(2.5, tokens=tokens))
        await turns()
        start, *both = workers.told(one)
        assert (start.started, start.tokens, start.ended) == ((msg.Started(7, 0),), None, ())
        assert [(step.time, step.tokens.token_ids.tolist(), step.started) for step in both] == [
            (1.5, [1, 2], ()),
            (2.5, [1, 2], ()),
        ]
        # What came after its only request had ended is not told.
        last, end = workers.told(other)
        assert (last.tokens.sequence_ids.tolist(), last.ended) == ([4, 9], ())
        assert (end.tokens, end.ended) == (None, (msg.Ended(8, 0),))
        assert workers.told(idle) == []

    asyncio.run(test())


def test_a_turn_of_the_engine_is_one_frame_a_worker():
    async def test() -> None:
        workers = Workers()
        one, other = workers.numbers
        await turns()
        workers.send(one, submit(1), submit(2), msg.LoadQuery(3))
        workers.told(one), workers.told(other)
        first, second, query = (command.key for command in workers.commands)
        workers.hub.receive(msg.Accepted(first, (1,)))
        workers.hub.receive(msg.Accepted(second, (2,)))
        workers.hub.receive(msg.LoadReply(query, num_running_requests=2))
        assert workers.frames[one] == []
        await turns()
        assert len(workers.frames[one]) == 1
        assert workers.frames[other] == []
        accepted, also, load = workers.told(one)
        assert (accepted.key, also.key, load.key, load.num_running_requests) == (1, 2, 3, 2)

    asyncio.run(test())


def test_workers_are_told_that_requests_are_accepted_only_when_all_listen():
    async def test() -> None:
        workers = Workers()
        workers.hub.receive(msg.EngineState(True, 100, 10))
        await turns()
        assert not any(state.serving for state in workers.told(workers.numbers[0]))
        assert not workers.hub.serving.is_set()
        workers.hub.open()
        await turns()
        assert workers.told(workers.numbers[0])[-1] == msg.EngineState(True, 100, 10)
        assert workers.hub.serving.is_set()

    asyncio.run(test())


@pytest.mark.parametrize(
    "commands",
    [
        [submit(1), submit(1)],
        [submit(1, n=2), msg.Abort(1, (2,))],
        [submit(1), msg.Abort(1, (-1,))],
        [msg.LoadQuery(2**40)],
        [msg.LoadQuery(-1)],
    ],
)
def test_what_would_upset_the_engine_is_a_frame_error(commands: list[msg.Command]):
    async def test() -> None:
        workers = Workers()
        with pytest.raises(FrameError):
            workers.send(workers.numbers[0], *commands)

    asyncio.run(test())


def test_who_does_not_read_is_given_up_without_a_wait():
    async def test() -> None:
        ours, theirs = socket.socketpair()
        connection = FrameConnection(lambda data: None, stall_seconds=0.02)
        await connection.open(ours)
        with theirs:
            for _ in range(8):
                connection.send(bytes(2**20))
            assert await asyncio.wait_for(connection.lost, 10) == "nothing is read"

    asyncio.run(test())


def test_what_is_sent_before_the_connection_is_open_is_not_lost():
    async def test() -> None:
        ours, theirs = socket.socketpair()
        connection = FrameConnection(lambda data: None)
        connection.send(b"first")
        await connection.open(ours)
        connection.send(b"second")
        with theirs:
            assert theirs.recv(100) == frame(b"first") + frame(b"second")
        await asyncio.wait_for(connection.lost, 10)

    asyncio.run(test())


def test_a_malformed_message_ends_the_connection():
    async def test() -> None:
        ours, theirs = socket.socketpair()
        hub = WorkerHub(lambda command: None)
        number = hub.connect(lambda data: None, lambda: None)
        connection = FrameConnection(lambda data: hub.take(number, data))
        await connection.open(ours)
        with theirs:
            theirs.sendall(frame(b"\xff\xff\xff"))
            assert "WorkerFrame" in await asyncio.wait_for(connection.lost, 10)
            assert theirs.recv(1) == b""

    asyncio.run(test())
