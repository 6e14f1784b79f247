"""Messages that are none, or mostly none, refused: gRPC ends such calls INTERNAL or UNKNOWN, and logs a stack."""

import functools
import inspect
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.message import DecodeError

# What the decoders of single requests return for bytes that are no message; None means something to gRPC.
_NO_MESSAGE = object()
_REASON = "the message cannot be read as what the method takes"
# gRPC keeps the bytes of a request until its call ends, so that they must not be more than what is checked in them. A
# list of numbers that is not packed takes twice the bytes.
_MAX_STUFFING_BYTES = 64 * 1024
_MAX_EXPANSION = 3


class CheckedServer:
    """A server, of either kind, to add services to: bytes that are no message end a call INVALID_ARGUMENT.

    In a stream of requests they come as a message in which nothing is set: of the services here each that takes such
    a stream refuses that.
    """

    def __init__(self, server: Any, threads: ThreadPoolExecutor | None = None) -> None:
        """With `threads`, calls of single requests wait for them in these, and not in those of the (sync) server."""
        self._server, self._threads = server, threads

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Nothing: what generated code adds by this, it adds by name as well."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Adds the methods of a service."""
        checked = {name: self._checked(handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, checked),))
        self._server.add_registered_method_handlers(service, checked)

    def _checked(self, handler: Any) -> Any:
        """The same handler, but for messages that cannot be read."""
        decode = handler.request_deserializer
        if handler.request_streaming:
            return handler._replace(request_deserializer=_decoder(decode, decode(b"")))
        decode = _sparing(decode)
        kind = "unary_stream" if handler.response_streaming else "unary_unary"
        guarded: Any = _guarded(getattr(handler, kind))
        if self._threads is not None:
            guarded.experimental_thread_pool = self._threads
        return handler._replace(request_deserializer=_decoder(decode, _NO_MESSAGE), **{kind: guarded})


def _decoder(decode: Callable[[bytes], Any], instead: Any) -> Callable[[bytes], Any]:
    def decode_or_not(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError:
            return instead

    return decode_or_not


def _sparing(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Also refuses messages that are mostly fields their type has not, or has again: nothing that a limit would see.

    Not for streams: of these gRPC keeps nothing that it has handed on, and a plan of many masks is measured for longer
    than its step takes.
    """

    def decode_sparingly(data: bytes) -> Any:
        message = decode(data)
        if len(data) > _MAX_STUFFING_BYTES:
            message.DiscardUnknownFields()
            if len(data) > _MAX_STUFFING_BYTES + _MAX_EXPANSION * message.ByteSize():
                raise DecodeError(_REASON)
        return message

    return decode_sparingly


def _guarded(behaviour: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(behaviour):

        @functools.wraps(behaviour)
        async def guarded_async(request: Any, context: Any) -> Any:
            if request is _NO_MESSAGE:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _REASON)
            return await behaviour(request, context)

        return guarded_async

    @functools.wraps(behaviour)
    def guarded(request: Any, context: Any, *rest: Any) -> Any:
        if request is _NO_MESSAGE:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, _REASON)
        return behaviour(request, context, *rest)

    return guarded
