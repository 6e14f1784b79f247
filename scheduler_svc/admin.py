"""AdminService: load, drain, cache, profiles and the change of executors."""

import asyncio
import contextlib
import math
from dataclasses import asdict
from typing import Any

from nanoserve.address import check_address
from nanoserve.profiles import MAX_STEPS, encode_profile
from nanoserve.v1 import admin_pb2 as pb
from nanoserve.v1.admin_pb2_grpc import AdminServiceServicer
from scheduler_svc.errors import InvalidRequest, handler
from scheduler_svc.frontend import Frontend
from scheduler_svc.messages import LoadReply

_MIN_INTERVAL_SECONDS, _MAX_INTERVAL_SECONDS = 0.05, 3600.0


class AdminService(AdminServiceServicer):
    """Operates the engine through a frontend."""

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend

    @handler
    async def GetLoad(self, request: pb.GetLoadRequest, context: Any) -> pb.GetLoadResponse:
        """The load of this moment."""
        return pb.GetLoadResponse(load=_load(await self._frontend.load()))

    @handler
    async def WatchLoad(self, request: pb.WatchLoadRequest, context: Any) -> None:
        """A stream of loads, until the caller has had enough or the server stops."""
        seconds = request.interval_seconds or 1.0
        if not _MIN_INTERVAL_SECONDS <= seconds <= _MAX_INTERVAL_SECONDS:
            rule = f"must be 0 or in [{_MIN_INTERVAL_SECONDS:g}, {_MAX_INTERVAL_SECONDS:g}]"
            raise InvalidRequest("interval_seconds", f"is {seconds:g}, {rule}")
        while True:
            await context.write(pb.WatchLoadResponse(load=_load(await self._frontend.load())))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._frontend.closed.wait()

    @handler
    async def ResetPrefixCache(
        self, request: pb.ResetPrefixCacheRequest, context: Any
    ) -> pb.ResetPrefixCacheResponse:
        """Forgets cached prefixes."""
        return pb.ResetPrefixCacheResponse(num_blocks=await self._frontend.reset_prefix_cache())

    @handler
    async def Drain(self, request: pb.DrainRequest, context: Any) -> pb.DrainResponse:
        """Refuses new requests for good; answers when the running ones are over."""
        seconds = request.timeout_seconds
        if not math.isfinite(seconds) or seconds < 0:
            raise InvalidRequest("timeout_seconds", f"is {seconds:g}, must be finite and at least 0")
        return pb.DrainResponse(num_aborted_requests=await self._frontend.drain(seconds or None))

    @handler
    async def SwitchExecutor(
        self, request: pb.SwitchExecutorRequest, context: Any
    ) -> pb.SwitchExecutorResponse:
        """Goes on with another executor between two steps."""
        try:
            address = check_address("executor", request.executor)
        except ValueError as error:
            raise InvalidRequest("executor", str(error).removeprefix("executor: ")) from None
        return pb.SwitchExecutorResponse(epoch=await self._frontend.switch_executor(address))

    @handler
    async def StartProfile(self, request: pb.StartProfileRequest, context: Any) -> pb.StartProfileResponse:
        """Begins a profile of both services' steps."""
        if not 0 <= request.num_steps <= MAX_STEPS:
            raise InvalidRequest("num_steps", f"is {request.num_steps}, must be in [0, {MAX_STEPS}]")
        await self._frontend.start_profile(request.num_steps)
        return pb.StartProfileResponse()

    @handler
    async def StopProfile(self, request: pb.StopProfileRequest, context: Any) -> pb.StopProfileResponse:
        """Ends the profile and returns it."""
        profile = await self._frontend.stop_profile()
        response: pb.StopProfileResponse = encode_profile(profile, pb.StopProfileResponse)
        return response


def _load(reply: LoadReply) -> pb.Load:
    values = asdict(reply)
    del values["key"]
    values["step_stats"] = values.pop("step_means")
    return pb.Load(**values)
