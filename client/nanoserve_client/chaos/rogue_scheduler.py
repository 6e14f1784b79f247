"""A second scheduler at the executor's door: it is refused, or it takes the executor over and sends bad plans."""

import random
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from nanoserve_client.chaos.bad_plans import BadPlan, draw_bad_plan
from nanoserve_client.connection import channel_options

_SECONDS = 10.0
_NEVER = 2**40
"""An epoch that no executor gets to."""
_REFUSED, _INVALID = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT
NO_TAKE_OVER = "no_take_over"
INTRUSIONS = (NO_TAKE_OVER, "stale_epoch", "future_epoch", "no_name", "plan_first", "silence")
"""Openings that must be refused: the first while a session is open, the others always."""
TAKE_OVERS = ("leave", "bad_plan", "bad_plans")
"""What a scheduler does that has taken over."""


async def intrude(executor: str, way: str) -> str:
    """Tries one of INTRUSIONS; returns what was not as it must be, empty where all was.

    grpc.RpcError where the executor is away, or leaves in the middle.
    """
    async with connected(executor) as stub:
        epoch = (await stub.Describe(pb.DescribeRequest(), timeout=_SECONDS)).epoch
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
        call = stub.Execute(timeout=_SECONDS)
        if first is not None:
            await call.write(first)
        else:
            await call.done_writing()
        answer = await _read(call)
        if answer is not None:
            return f"intrude ({way}): answered {answer.WhichOneof('response')} instead of {wanted.name}"
        code = await call.code()
        return "" if code is wanted else f"intrude ({way}): {code.name} instead of {wanted.name}"


async def take_over(executor: str, way: str, draw: random.Random) -> str:
    """Takes the executor over in one of TAKE_OVERS; returns what was not as it must be, empty where all was.

    grpc.RpcError where the executor is away, or leaves in the middle: a session may have been taken over by then.
    """
    async with connected(executor) as stub:
        for _ in range(draw.randint(2, 5) if way == "bad_plans" else 1):
            call = await opened(stub)
            if call is None:  # who was fenced or killed has come back in between
                continue
            if way != "leave" and (problem := await try_bad_plan(call, draw_bad_plan(draw))):
                return problem
            call.cancel()
    return ""


async def opened(stub: ExecutorServiceStub) -> Any:
    """A call whose session has taken over all others'; None where another was opened at the same time."""
    epoch = (await stub.Describe(pb.DescribeRequest(), timeout=_SECONDS)).epoch
    call = stub.Execute(timeout=_SECONDS)
    await call.write(_opening(epoch, take_over=True))
    return call if await _read(call) is not None else None


async def try_bad_plan(call: Any, bad: BadPlan) -> str:
    """Sends a bad plan in an open session; returns what was not as it must be.

    grpc.RpcError where the stream ended with one.
    """
    if not call.done():
        await call.write(pb.ExecuteRequest(plan=bad.plan))
    answer = await call.read()
    if not isinstance(answer, pb.ExecuteResponse):
        return f"a bad plan ended the stream: {bad.plan}"
    result = answer.result
    if result.status != pb.STEP_STATUS_FAILED or result.error.code != pb.STEP_ERROR_CODE_INVALID_ARGUMENT:
        return f"a bad plan was answered {result}: {bad.plan}"
    if bad.field not in result.error.field:
        return f"a bad plan's field is {bad.field!r}, not {result.error.field!r}: {bad.plan}"
    return ""


async def _read(call: Any) -> pb.ExecuteResponse | None:
    """The next message, None where the stream has ended."""
    try:
        message = await call.read()
    except grpc.aio.AioRpcError:
        return None
    return message if isinstance(message, pb.ExecuteResponse) else None


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
