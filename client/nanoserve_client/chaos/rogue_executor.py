"""A relay that speaks the executor's contract, and tampers with answers of the real executor behind it.

The scheduler that it lies to is the real one. What no scheduler could tell is a token changed into another.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc

from nanoserve.address import SERVER_OPTIONS
from nanoserve.arrays import pack_int32, unpack_int32
from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve_client.connection import channel_options

_SERVICE = pb.DESCRIPTOR.services_by_name["ExecutorService"].full_name
_TOO_LARGE = 2**30
_DESCRIBE_SECONDS = 5.0


def _repeat(result: pb.StepResult) -> list[bytes]:
    return [_encode(result), _encode(result)]


def _unknown_step(result: pb.StepResult) -> list[bytes]:
    result.step_id += 1000
    return [_encode(result)]


def _wrong_sub_step(result: pb.StepResult) -> list[bytes]:
    result.sub_step += 3
    return [_encode(result)]


def _unknown_row(result: pb.StepResult) -> list[bytes]:
    result.rows = _with_last(result.rows, _TOO_LARGE)
    return [_encode(result)]


def _missing_row(result: pb.StepResult) -> list[bytes]:
    result.rows, result.token_ids = result.rows[:-4], result.token_ids[:-4]
    return [_encode(result)]


def _unknown_token(result: pb.StepResult) -> list[bytes]:
    result.token_ids = _with_last(result.token_ids, _TOO_LARGE)
    return [_encode(result)]


def _negative_token(result: pb.StepResult) -> list[bytes]:
    result.token_ids = _with_last(result.token_ids, -7)
    return [_encode(result)]


def _cut_array(result: pb.StepResult) -> list[bytes]:
    result.token_ids = result.token_ids[:-1]
    return [_encode(result)]


def _no_status(result: pb.StepResult) -> list[bytes]:
    result.status = pb.STEP_STATUS_UNSPECIFIED
    return [_encode(result)]


def _fail(result: pb.StepResult) -> list[bytes]:
    failed = pb.StepResult(
        step_id=result.step_id, sub_step=result.sub_step, last=True, status=pb.STEP_STATUS_FAILED
    )
    failed.error.code, failed.error.description = pb.STEP_ERROR_CODE_INTERNAL, "made up"
    return [_encode(failed)]


def _blame(result: pb.StepResult) -> list[bytes]:
    result.row_statuses = pack_int32(
        [pb.ROW_STATUS_NON_FINITE_LOGITS] + [pb.ROW_STATUS_OK] * (len(result.rows) // 4 - 1)
    )
    result.token_ids = pack_int32([-1, *unpack_int32(result.token_ids)[1:].tolist()])
    return [_encode(result)]


def _open_again(result: pb.StepResult) -> list[bytes]:
    return [pb.ExecuteResponse(opened=pb.SessionOpened(epoch=7)).SerializeToString(), _encode(result)]


def _empty(result: pb.StepResult) -> list[bytes]:
    return [b"", _encode(result)]


def _garbage(result: pb.StepResult) -> list[bytes]:
    return [b"\xff\xff\xff\xff\x0f" + _encode(result)]


def _lie(result: pb.StepResult) -> list[bytes]:
    last = int(unpack_int32(result.token_ids)[-1])
    result.token_ids = _with_last(result.token_ids, last ^ 1)
    return [_encode(result)]


LIE = "lie"
"""The way that no scheduler could tell, and so none of WAYS: it shows that these runs would."""
WAYS: dict[str, Callable[[pb.StepResult], list[bytes]]] = {
    "repeat": _repeat,
    "unknown_step": _unknown_step,
    "wrong_sub_step": _wrong_sub_step,
    "unknown_row": _unknown_row,
    "missing_row": _missing_row,
    "unknown_token": _unknown_token,
    "negative_token": _negative_token,
    "cut_array": _cut_array,
    "no_status": _no_status,
    "fail": _fail,
    "blame": _blame,
    "open_again": _open_again,
    "empty": _empty,
    "garbage": _garbage,
}
"""What may be done to a result with rows; only `blame` costs a request its life."""


@dataclass(frozen=True, slots=True)
class Poison:
    """A prompt that no executor survives: every plan that starts it has it killed, or fails."""

    token_ids: bytes
    """int32[]: the prompt."""
    kill: Callable[[], None] | None
    """Kills the executor; None: the step fails."""

    def is_in(self, plan: pb.StepPlan) -> bool:
        """Whether the plan starts it."""
        return any(start.token_ids.startswith(self.token_ids) for start in plan.starts)


class Relay:
    """Serves the executor's contract at `listen`, for the executor at `upstream`."""

    def __init__(self, listen: str, upstream: str) -> None:
        self.poisons: list[Poison] = []
        """Prompts that it watches for."""
        self._listen, self._upstream = listen, upstream
        self._tampers: list[tuple[str, asyncio.Future[None]]] = []
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Listens."""
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        handlers = {
            "Describe": grpc.unary_unary_rpc_method_handler(self._describe, _as_it_is, _as_it_is),
            "Execute": grpc.stream_stream_rpc_method_handler(self._execute, _as_it_is, _as_it_is),
        }
        handler = grpc.method_handlers_generic_handler(_SERVICE, handlers)
        self._server.add_generic_rpc_handlers((handler,))
        self._server.add_insecure_port(self._listen)
        await self._server.start()

    async def close(self) -> None:
        """Ends all calls."""
        if self._server is not None:
            await self._server.stop(0)

    async def tamper(self, way: str) -> None:
        """Returns when the next result with rows has been tampered with in this way, of WAYS or LIE."""
        entry = (way, asyncio.get_running_loop().create_future())
        self._tampers.append(entry)
        try:
            await entry[1]
        finally:
            if entry in self._tampers:
                self._tampers.remove(entry)

    async def _describe(self, request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        async with self._channel() as channel:
            try:
                describe: Any = channel.unary_unary(f"/{_SERVICE}/Describe")
                answer: bytes = await describe(request, timeout=_DESCRIBE_SECONDS)
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "")
            return answer

    async def _execute(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        async with self._channel() as channel:
            call: Any = channel.stream_stream(f"/{_SERVICE}/Execute")()
            upward = asyncio.ensure_future(self._carry(requests, call))
            try:
                async for message in call:
                    for changed in self._changed(message):
                        await context.write(changed)
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "")
            except asyncio.CancelledError:
                if not upward.done() or upward.cancelled() or upward.result() is None:
                    raise
                await context.write(upward.result())
            finally:
                upward.cancel()
                call.cancel()

    async def _carry(self, requests: AsyncIterator[bytes], call: Any) -> bytes | None:
        """Passes the scheduler's messages on; returns what to answer instead to one that fails."""
        with suppress(grpc.RpcError, asyncio.InvalidStateError):
            async for request in requests:
                plan = pb.ExecuteRequest.FromString(request).plan if self.poisons else pb.StepPlan()
                for poison in self.poisons:
                    if poison.is_in(plan):
                        if poison.kill is None:
                            call.cancel()
                            return _fail(pb.StepResult(step_id=plan.step_id))[0]
                        poison.kill()
                await call.write(request)
            await call.done_writing()
        return None

    def _changed(self, message: bytes) -> list[bytes]:
        if not self._tampers:
            return [message]
        response = pb.ExecuteResponse.FromString(message)
        if response.WhichOneof("response") != "result" or not response.result.rows:
            return [message]
        way, done = self._tampers.pop(0)
        if not done.done():
            done.set_result(None)
        return (_lie if way == LIE else WAYS[way])(response.result)

    def _channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self._upstream, options=channel_options())


def _with_last(values: bytes, last: int) -> bytes:
    """int32[]: the values, the last one replaced."""
    return pack_int32([*unpack_int32(values)[:-1].tolist(), last])


def _encode(result: pb.StepResult) -> bytes:
    return pb.ExecuteResponse(result=result).SerializeToString()


def _as_it_is(data: bytes) -> bytes:
    return data
