"""A second scheduler at the executor's door: it is refused, or it takes the executor over and sends bad plans."""

import asyncio
import random
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc

from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from nanoserve_client.chaos.bad_plans import BadPlan, draw_bad_plan
from nanoserve_client.connection import channel_options

_SECONDS = 10.0
_NEVER = 2**40
"""An epoch that no executor gets to."""
# How a stream ends that its executor leaves, or another scheduler ends.
_LEAVING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
)
_REFUSED, _INVALID = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT
NO_TAKE_OVER = "no_take_over"
INTRUSIONS = (NO_TAKE_OVER, "stale_epoch", "future_epoch", "no_name", "plan_first", "silence")
"""Openings that must be refused: the first while a session is open, the others always."""
TAKE_OVERS = ("leave", "bad_plan", "bad_plans")
"""What a scheduler does that has taken over."""


class ExecutorLeft(Exception):
    """The executor was away, or ended the stream for a reason that is not what it was sent."""


async def intrude(executor: str, way: str) -> str:
    """Tries one of INTRUSIONS; returns what was not as it must be, empty where all was. May raise ExecutorLeft."""
    async with connected(executor) as stub:
        epoch = await _epoch(stub)
        first: pb.ExecuteRequest | None = _opening(epoch, take_over=False)
        wanted = _REFUSED
        if way == "stale_epoch":
            first = _opening(epoch - 1 if epoch else _NEVER, take_over=True)
        elif way == "future_epoch":
            first = _opening(epoch + _NEVER, take_over=True)
        elif way == "no_name":
            first, wanted = _opening(epoch, take_over=True, name=""), _INVALID
        elif way == "plan_first":
            first, wanted = pb.ExecuteRequest(plan=pb.StepPlan(step_id=1)), _INVALID
        elif way == "silence":
            first, wanted = None, _INVALID
        answer = await _ask(stub.Execute(timeout=_SECONDS), first)
        if answer is wanted:
            return ""
        if isinstance(answer, grpc.StatusCode):
            return f"intrude ({way}): {answer.name} instead of {wanted.name}"
        return f"intrude ({way}): answered {answer.WhichOneof('response')} instead of {wanted.name}"


class TakeOver:
    """A scheduler that takes an executor over and then does one of TAKE_OVERS."""

    def __init__(self, executor: str, way: str, draw: random.Random) -> None:
        self._executor, self._way, self._draw = executor, way, draw
        self.may_have_fenced = False
        """Whether a session may have been opened, by which the scheduler before it is fenced."""

    async def run(self) -> str:
        """Returns what was not as it must be, empty where all was. May raise ExecutorLeft."""
        async with connected(self._executor) as stub:
            for _ in range(self._draw.randint(2, 5) if self._way == "bad_plans" else 1):
                epoch = await _epoch(stub)
                self.may_have_fenced = True
                call = await opened(stub, epoch)
                if call is None:  # who was fenced or killed has come back in between
                    continue
                if self._way != "leave" and (problem := await try_bad_plan(call, draw_bad_plan(self._draw))):
                    return problem
                call.cancel()
        return ""


async def opened(stub: ExecutorServiceStub, epoch: int | None = None) -> Any:
    """A call whose session has taken over all others'; None where another was opened since `epoch` was told.

    May raise ExecutorLeft.
    """
    call = stub.Execute(timeout=_SECONDS)
    answer = await _ask(call, _opening(await _epoch(stub) if epoch is None else epoch, take_over=True))
    if isinstance(answer, grpc.StatusCode) and answer is not _REFUSED:
        raise ExecutorLeft(f"a session was not opened: {answer.name}")
    return None if answer is _REFUSED else call


async def try_bad_plan(call: Any, bad: BadPlan) -> str:
    """Sends a bad plan in an open session; returns what was not as it must be. May raise ExecutorLeft."""
    answer = await _ask(call, pb.ExecuteRequest(plan=bad.plan))
    if isinstance(answer, grpc.StatusCode):
        return f"a bad plan ended the stream with {answer.name}: {bad.plan}"
    result = answer.result
    if result.status != pb.STEP_STATUS_FAILED or result.error.code != pb.STEP_ERROR_CODE_INVALID_ARGUMENT:
        return f"a bad plan was answered {result}: {bad.plan}"
    if bad.field not in result.error.field:
        return f"a bad plan's field is {bad.field!r}, not {result.error.field!r}: {bad.plan}"
    return ""


async def _epoch(stub: ExecutorServiceStub) -> int:
    try:
        answer: pb.DescribeResponse = await stub.Describe(pb.DescribeRequest(), timeout=_SECONDS)
    except grpc.aio.AioRpcError as error:
        raise ExecutorLeft(error.code().name) from error
    return answer.epoch


async def _ask(call: Any, request: pb.ExecuteRequest | None) -> pb.ExecuteResponse | grpc.StatusCode:
    """The answer to a message (None: to there being none), or the status by which the stream has ended instead."""
    try:
        await (call.done_writing() if request is None else call.write(request))
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
        raise ExecutorLeft("the stream had ended before") from error
    with suppress(grpc.aio.AioRpcError):
        answer = await call.read()
        if isinstance(answer, pb.ExecuteResponse):
            return answer
    code: grpc.StatusCode = await call.code()
    if code in _LEAVING:
        raise ExecutorLeft(code.name)
    return code


def _opening(epoch: int, *, take_over: bool, name: str | None = None) -> pb.ExecuteRequest:
    scheduler_id = f"rogue-{secrets.token_hex(4)}" if name is None else name
    return pb.ExecuteRequest(
        open=pb.OpenSession(scheduler_id=scheduler_id, expected_epoch=epoch, take_over=take_over)
    )


@asynccontextmanager
async def connected(executor: str) -> AsyncIterator[ExecutorServiceStub]:
    """The executor's methods, over a connection of its own."""
    async with grpc.aio.insecure_channel(executor, options=channel_options()) as channel:
        yield ExecutorServiceStub(channel)
