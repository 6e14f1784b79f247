"""What goes wrong, in one tree.

    NanoserveError
    ├── InvalidRequest (also a ValueError)   an argument that cannot be sent; no call was made
    ├── ProtocolError                        the server broke the contract
    ├── ServerStartError                     a local server did not come up
    └── ApiError                             a call failed; `code` is its gRPC status code
        ├── InvalidArgument                  `violations` say which fields
        ├── NotFound                         another model than the served one
        ├── AlreadyExists                    a live request has this request_id
        ├── ResourceExhausted                overload; `retry_after_seconds` says when to come back
        ├── Unauthenticated                  the server wants a key, or another one
        ├── PermissionDenied                 the key is not an administrator's
        ├── Unimplemented                    `violations` say which fields
        ├── DeadlineExceeded                 the call's `timeout` has passed
        ├── Cancelled                        ended by the server's side, or by another thread of the caller
        ├── Internal                         a bug of the server; the message holds an id that is in its log
        └── Unavailable                      draining, restarting or gone
            └── ConnectionFailed             no connection, so no call was made: safe to retry

Status codes that the contract does not name arrive as a plain ApiError.
"""

from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status


class NanoserveError(Exception):
    """Root of every error that this package raises on purpose."""


def closed_client() -> NanoserveError:
    """What is raised where a client is used that has been closed."""
    return NanoserveError("the client has been closed")


def stream_given_up() -> NanoserveError:
    """What is raised where the whole is wanted of a stream that was closed, or has failed, amid it."""
    return NanoserveError("the stream was given up before its end")


class InvalidRequest(NanoserveError, ValueError):
    """An argument that cannot be sent; the message starts with its name. No call was made."""


class ProtocolError(NanoserveError):
    """The server broke the contract, or speaks a newer one than this library."""


class ServerStartError(NanoserveError):
    """A process of a local server ended before it served.

    `service` is "executor" or "scheduler"; `exit_status` is its exit status, negative for a signal, None where it
    was still running when the time to start was up.
    """

    def __init__(self, service: str, message: str, exit_status: int | None) -> None:
        super().__init__(message)
        self.service = service
        self.exit_status = exit_status


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field at fault: its path in the request message, and what is wrong with it."""

    field: str
    description: str


class ApiError(NanoserveError):
    """A call failed. `retry_after_seconds` is None where the server did not say."""

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        violations: tuple[FieldViolation, ...] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.violations = violations
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        untold = [v for v in self.violations if v.field not in self.message]
        parts = [self.message or self.code.name, *(f"{v.field}: {v.description}" for v in untold)]
        return "; ".join(parts)


class InvalidArgument(ApiError):
    """The request breaks a rule of the contract."""


class NotFound(ApiError):
    """Another model than the served one was asked for."""


class AlreadyExists(ApiError):
    """A live request has this request_id."""


class ResourceExhausted(ApiError):
    """Overload, or a sequence that can no longer fit."""


class Unauthenticated(ApiError):
    """The server wants a key, or another one."""


class PermissionDenied(ApiError):
    """The key does not allow this call."""


class Unimplemented(ApiError):
    """The contract has this, the server does not serve it."""


class DeadlineExceeded(ApiError):
    """The call's timeout has passed."""


class Cancelled(ApiError):
    """The call was cancelled."""


class Internal(ApiError):
    """A bug of the server."""


class Unavailable(ApiError):
    """The server drains, restarts or is gone."""


class ConnectionFailed(Unavailable):
    """No connection came about, so no call was made."""

    def __init__(self, address: str, message: str) -> None:
        super().__init__(grpc.StatusCode.UNAVAILABLE, message)
        self.address = address


_BY_CODE: dict[grpc.StatusCode, type[ApiError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.INTERNAL: Internal,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
}


def error_from_rpc(error: grpc.RpcError) -> ApiError:
    """The ApiError for a failed call, of the sync or the aio kind, with its google.rpc details decoded."""
    call: Any = error  # what grpc raises is a call too, which its type does not say
    violations, retry_after_seconds = _details(call)
    kind = _BY_CODE.get(call.code(), ApiError)
    return kind(call.code(), call.details() or "", violations, retry_after_seconds)


def said_by_server(error: grpc.RpcError) -> bool:
    """Whether a call's status is the server's own word: that of a connection that broke has no details."""
    call: Any = error
    return any(key == "grpc-status-details-bin" for key, _ in call.trailing_metadata() or ())


def _details(call: Any) -> tuple[tuple[FieldViolation, ...], float | None]:
    try:
        status = rpc_status.from_call(call)
    except ValueError:  # details that contradict the call's own status
        return (), None
    violations: list[FieldViolation] = []
    retry_after_seconds = None
    for detail in status.details if status else ():
        bad_request, retry_info = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(bad_request):
            violations += [FieldViolation(v.field, v.description) for v in bad_request.field_violations]
        elif detail.Unpack(retry_info):
            retry_after_seconds = retry_info.retry_delay.ToTimedelta().total_seconds()
    return tuple(violations), retry_after_seconds
