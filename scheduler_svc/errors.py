"""What goes wrong in the API, and how each problem becomes a gRPC status. This is the only place that maps them.

    ServiceError              a Problem, as messages tell it
      InvalidRequest          INVALID_ARGUMENT, names a field
Anything else that a handler raises is a bug: INTERNAL with an id that is in the log, and no stack for the client.
Only what gRPC raises when a client has gone is none: it ends the call as a cancellation does.
"""

import asyncio
import secrets
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar, cast

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from scheduler_svc.messages import Code, Problem

# A status travels in the headers, of which clients take 8 KiB: what is wrong may be as long as the request.
_MAX_DESCRIPTION_CHARACTERS = 200
_log = structlog.get_logger()
_Handler = TypeVar("_Handler", bound=Callable[..., Awaitable[Any]])


class ServiceError(Exception):
    """A problem on its way to the client."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.description)
        self.problem = problem


class InvalidRequest(ServiceError):
    """A field of the request is wrong."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(Problem(Code.INVALID_ARGUMENT, description, field))


def internal_problem(what: str, **context: Any) -> Problem:
    """Mints an id, logs `what` happened under it (with the exception being handled, if any), returns the problem."""
    error_id = secrets.token_hex(8)
    _log.error(what, error_id=error_id, exc_info=sys.exc_info()[0] is not None, **context)
    return Problem(Code.INTERNAL, f"internal error {error_id}")


def to_status(problem: Problem) -> grpc.Status:
    """The gRPC status of a problem, with google.rpc details: BadRequest where a field is named, RetryInfo."""
    field, description = problem.field, _shortened(problem.description)
    message = f"{field}: {description}" if field else description
    status = status_pb2.Status(code=int(problem.code), message=message)
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if problem.retry_seconds > 0:
        delay = Duration()
        delay.FromNanoseconds(int(problem.retry_seconds * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return cast(grpc.Status, rpc_status.to_status(status))


def _shortened(description: str) -> str:
    """Takes out the middle, where the client's own words are, of what is too long."""
    if len(description) <= _MAX_DESCRIPTION_CHARACTERS:
        return description
    half = _MAX_DESCRIPTION_CHARACTERS // 2
    return f"{description[: half - 1]}…{description[-half:]}"


async def abort(context: Any, problem: Problem) -> NoReturn:
    """Ends a call with the status of a problem."""
    status = to_status(problem)
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("abort raises")


def handler(method: _Handler) -> _Handler:
    """Makes an async servicer method end with the status of what it raises; cancellation passes."""

    async def guarded(self: Any, request: Any, context: Any) -> Any:
        try:
            try:
                return await method(self, request, context)
            except ServiceError as error:
                problem = error.problem
            except grpc.aio.InternalError:
                raise
            except Exception:
                problem = internal_problem("a handler failed", method=method.__name__)
            await abort(context, problem)
        except grpc.aio.InternalError:
            # A write whose client has gone while it waited.
            raise asyncio.CancelledError from None

    return guarded  # type: ignore[return-value]
