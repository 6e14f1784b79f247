"""Profiles on behalf of the API: the engine's own spans, and the executor's by its StartProfile and StopProfile."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc

from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from nanoserve.profiles import MAX_STEPS, Profile, decode_profile
from scheduler_svc import messages as msg
from scheduler_svc.errors import internal_problem
from scheduler_svc.executor_access import ExecutorAccess
from scheduler_svc.messages import Code, Problem
from scheduler_svc.step_spans import StepSpans

# The executor waits for the steps under way, then begins; and in the end writes and reads the trace.
_START_SECONDS = 30.0
_STOP_SECONDS = 90.0
_NONE = Problem(Code.FAILED_PRECONDITION, "no profile is being recorded")
_RUNNING = Problem(Code.FAILED_PRECONDITION, "a profile is being recorded already")
_CODES = {
    grpc.StatusCode.FAILED_PRECONDITION: Code.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT: Code.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED: Code.UNIMPLEMENTED,
}


class Profiler:
    """Belongs to the engine's loop. Calls to the executor are made one after the other, in tasks of their own."""

    def __init__(self, executor: ExecutorAccess, publish: Callable[[msg.Event], None]) -> None:
        """Answers go to `publish`."""
        self.spans: StepSpans | None = None
        """What the engine's steps are noted in; None: nothing is."""
        self._recorded: StepSpans | None = None
        """What is, or was last, recorded, and not collected yet."""
        self._executor, self._publish = executor, publish
        self._calls = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def switch(self, executor: ExecutorAccess) -> None:
        """From now on another executor is asked; what is being recorded of the present one is given up."""
        self._executor = executor
        self.spans = self._recorded = None

    def handle(self, command: msg.StartProfile | msg.StopProfile, last_step_id: int) -> None:
        """Begins to do what is asked; a ProfileReply tells of it. `last_step_id` is the latest plan in flight, or 0."""
        work: Callable[[], Awaitable[msg.ProfileReply]]
        if isinstance(command, msg.StopProfile):
            work = partial(self._stop, command.key)
        elif self._recorded is not None and not self._recorded.is_over():
            self._publish(msg.ProfileReply(command.key, _RUNNING))
            return
        else:
            # Before the executor begins: of all steps that it notes this side is noted too.
            former, self._recorded = self._recorded, StepSpans()
            self.spans = self._recorded
            work = partial(self._start, command, last_step_id, self._recorded, former)
        task = asyncio.ensure_future(self._guarded(command.key, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, key: int, work: Callable[[], Awaitable[msg.ProfileReply]]) -> None:
        """Answers a command with what comes of it, or with why it failed."""
        try:
            async with self._calls:
                reply = await work()
        except grpc.aio.AioRpcError as error:
            code = _CODES.get(error.code(), Code.UNAVAILABLE)
            reply = msg.ProfileReply(key, Problem(code, f"executor: {error.details() or error.code().name}"))
        except Exception:
            reply = msg.ProfileReply(key, internal_problem("a profile failed"))
        self._publish(reply)

    async def _start(
        self, command: msg.StartProfile, last_step_id: int, spans: StepSpans, former: StepSpans | None
    ) -> msg.ProfileReply:
        request = pb.StartProfileRequest(num_steps=command.num_steps, after_step_id=last_step_id)
        try:
            await self._call("StartProfile", request, _START_SECONDS)
        except BaseException:
            # One that is over may still have to be collected.
            self._forget(spans, former)
            raise
        spans.confirm(command.num_steps or MAX_STEPS)
        return msg.ProfileReply(command.key)

    async def _stop(self, key: int) -> msg.ProfileReply:
        spans = self._recorded
        if spans is None:
            return msg.ProfileReply(key, _NONE)
        try:
            response = await self._call("StopProfile", pb.StopProfileRequest(), _STOP_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                self._forget(spans)  # the executor has none: it is another one now
            raise
        self._forget(spans)
        return msg.ProfileReply(key, profile=await asyncio.to_thread(_joined, spans, response))

    def _forget(self, spans: StepSpans, former: StepSpans | None = None) -> None:
        if self._recorded is spans:  # and not those of a profile that was begun meanwhile
            self.spans = self._recorded = former

    async def _call(self, method: str, request: Any, timeout: float) -> Any:
        async with self._executor.channel() as channel:
            call = getattr(ExecutorServiceStub(channel), method)
            return await call(request, timeout=timeout, metadata=self._executor.metadata)


def _joined(spans: StepSpans, response: pb.StopProfileResponse) -> Profile:
    return spans.joined(decode_profile(response))
