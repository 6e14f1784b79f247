"""A session with another executor, opened beside the present one, to be gone on with between two steps."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from nanoserve.address import CHANNEL_OPTIONS
from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from scheduler_svc.executor_access import ExecutorAccess

LINK_OPTIONS: list[tuple[str, int]] = [
    *CHANNEL_OPTIONS,
    # Each attempt to connect is the link's own: no back-off is shared with the channel before.
    ("grpc.use_local_subchannel_pool", 1),
]
_PREPARE_SECONDS = 10.0
ExecutorCall: TypeAlias = "grpc.aio.StreamStreamCall[pb.ExecuteRequest, pb.ExecuteResponse]"


class SwitchRefused(Exception):
    """There can be no session with the other executor; the present one goes on."""


@dataclass(frozen=True, slots=True)
class PreparedSession:
    """Open, with no plan sent yet."""

    access: ExecutorAccess
    channel: grpc.aio.Channel
    call: ExecutorCall
    opened: pb.SessionOpened

    def cancel(self) -> None:
        """Gives it up."""
        self.call.cancel()


async def prepare_session(
    access: ExecutorAccess, scheduler_id: str, check: Callable[[pb.ExecutorDescription], None]
) -> PreparedSession:
    """Opens a session; SwitchRefused where the executor is not there, not warm, or another scheduler's.

    `check` raises SwitchRefused where it is not one to open a session with.
    """
    channel = access.channel(LINK_OPTIONS)
    try:
        async with asyncio.timeout(_PREPARE_SECONDS):
            call, opened = await _open(ExecutorServiceStub(channel), access, scheduler_id, check)
    except TimeoutError:
        await channel.close()
        raise SwitchRefused(f"{access.address}: no session within {_PREPARE_SECONDS:g} s") from None
    except grpc.aio.AioRpcError as error:
        await channel.close()
        raise SwitchRefused(f"{access.address}: {error.details() or error.code().name}") from error
    except BaseException:
        await channel.close()
        raise
    return PreparedSession(access, channel, call, opened)


async def _open(
    stub: ExecutorServiceStub,
    access: ExecutorAccess,
    scheduler_id: str,
    check: Callable[[pb.ExecutorDescription], None],
) -> tuple[ExecutorCall, pb.SessionOpened]:
    answer: pb.DescribeResponse = await stub.Describe(pb.DescribeRequest(), metadata=access.metadata)
    check(answer.description)
    if answer.warming_up:
        raise SwitchRefused(f"{access.address} is still warming up")
    call = stub.Execute(metadata=access.metadata)
    opening = pb.OpenSession(scheduler_id=scheduler_id, expected_epoch=answer.epoch)
    try:
        await call.write(pb.ExecuteRequest(open=opening))
        first = await call.read()
    except asyncio.InvalidStateError:  # the call is over
        first = None
    if not isinstance(first, pb.ExecuteResponse) or first.WhichOneof("response") != "opened":
        raise SwitchRefused(f"{access.address}: {await call.details() or 'opens no session'}")
    check(first.opened.description)
    return call, first.opened
