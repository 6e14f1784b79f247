"""What both clients do about connections and deadlines.

gRPC tells a refused connection and a server's own UNAVAILABLE alike. So before its first call, and after one that was
UNAVAILABLE, a client opens and closes a connection of its own: where that fails no call was made, and it is safe to
try again.
"""

import asyncio
import socket
import time
from collections.abc import Sequence
from numbers import Real
from typing import Protocol

import grpc

from nanoserve.address import CHANNEL_OPTIONS, check_address
from nanoserve_client.errors import (
    ApiError,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidRequest,
    NanoserveError,
    Unavailable,
    closed_client,
    error_from_rpc,
)

DEFAULT_ADDRESS = "127.0.0.1:50051"
# So gRPC begins to say that somebody listens, but nothing came of it: often that one side does not trust the other.
_NOT_CONNECTED = "failed to connect"
DEFAULT_CONNECT_TIMEOUT = 10.0
NOBODY = "nothing listens at"
"""What a ConnectionFailed begins with where a connection is refused."""
_RETRY_SECONDS = 0.1
# gRPC takes the far future for the past, so what is longer than a year is no deadline.
_LONGEST_TIMEOUT_SECONDS = 365 * 86400.0
_LONGEST_PROBE_SECONDS = 86400.0  # a socket's timeout has to fit into 32 bits of milliseconds


def checked_address(address: str) -> str:
    """`address`; InvalidRequest where it is neither host:port nor unix:PATH."""
    if not isinstance(address, str):
        raise InvalidRequest(f"address: {address!r} is no text")
    try:
        return check_address("address", address)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


def channel_options() -> Sequence[tuple[str, int]]:
    """The options of a client's channel."""
    return [
        *CHANNEL_OPTIONS,
        # A server that starts again is found soon after it listens; grpc would wait 1 s, then up to 120 s.
        ("grpc.initial_reconnect_backoff_ms", 100),
        # How long an attempt may take, whatever the name says: a handshake of TLS is several round trips.
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # Otherwise a channel inherits the backoff of another one to the same address.
        ("grpc.use_local_subchannel_pool", 1),
        # Where an environment names a proxy for web pages, calls to this machine would go there too.
        ("grpc.enable_http_proxy", 0),
    ]


async def open_connection(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection of bytes to host:port or unix:PATH; OSError where there is none to be had."""
    if address.startswith("unix:"):
        return await asyncio.open_unix_connection(_unix_path(address))
    return await asyncio.open_connection(*_host_and_port(address))


class Deadline:
    """The end of one call, `timeout` seconds from its making; None, or more than a year, for no end."""

    def __init__(self, timeout: float | None) -> None:
        if timeout is not None:
            _check_seconds("timeout", timeout)
        self._timeout = timeout
        endless = timeout is None or timeout > _LONGEST_TIMEOUT_SECONDS
        self._end = None if timeout is None or endless else time.monotonic() + float(timeout)

    def remaining(self) -> float | None:
        """Seconds left, None for no end; DeadlineExceeded where there are none."""
        if self._end is None:
            return None
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"no connection within the timeout of {self._timeout} s"
            )
        return left


class Over(Protocol):
    """Whether a stream has been closed: an event of threads or of asyncio."""

    def is_set(self) -> bool:
        """Whether it has."""
        ...


class Connector:
    """Makes sure that somebody listens before a call is made; one for each client.

    A refused connection raises ConnectionFailed at once, or with `wait_for_ready` when `connect_timeout` seconds have
    passed; one that is not answered is waited for until then.
    """

    def __init__(self, address: str, connect_timeout: float, wait_for_ready: bool) -> None:
        _check_seconds("connect_timeout", connect_timeout)
        self._address = address
        self._connect_timeout = min(connect_timeout, _LONGEST_TIMEOUT_SECONDS)
        self._wait_for_ready = wait_for_ready
        self._connected = False
        self._closed = False

    def connect(self, deadline: Deadline, over: Over | None = None) -> None:
        """Blocks until somebody listens; ConnectionFailed or DeadlineExceeded where nobody does.

        NanoserveError where the client is closed before or meanwhile, or the stream that this is for is `over`.
        """
        self.check_open(over)
        end = time.monotonic() + self._connect_timeout
        while not self._connected:
            try:
                self._probe(self._patience(end, deadline))
                self._connected = True
            except OSError as error:
                self._judge(error)
                time.sleep(min(_RETRY_SECONDS, self._patience(end, deadline)))
            self.check_open(over)

    async def connect_async(self, deadline: Deadline, over: Over | None = None) -> None:
        """As `connect`, for asyncio."""
        self.check_open(over)
        end = time.monotonic() + self._connect_timeout
        while not self._connected:
            try:
                async with asyncio.timeout(self._patience(end, deadline)):
                    await self._probe_async()
                self._connected = True
            except OSError as error:  # a timeout is one
                self._judge(error)
                await asyncio.sleep(min(_RETRY_SECONDS, self._patience(end, deadline)))
            self.check_open(over)

    def close(self) -> None:
        """No call can be made any more."""
        self._closed = True

    def check_open(self, over: Over | None = None) -> None:
        """NanoserveError where the client has been closed, or the stream is over."""
        if self._closed:
            raise closed_client()
        if over is not None and over.is_set():
            raise NanoserveError("the stream has been closed")

    def failure(self, error: grpc.RpcError) -> ApiError:
        """The error to raise for a call that failed."""
        failure = error_from_rpc(error)
        if isinstance(failure, Unavailable):
            self._connected = False
            if failure.message.startswith(_NOT_CONNECTED) and not self._wait_for_ready:
                return ConnectionFailed(self._address, failure.message)
        return failure

    def _probe(self, timeout: float) -> None:
        if self._address.startswith("unix:"):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(timeout)
                connection.connect(_unix_path(self._address))
        else:
            socket.create_connection(_host_and_port(self._address), timeout).close()

    async def _probe_async(self) -> None:
        _, writer = await open_connection(self._address)
        writer.close()
        await writer.wait_closed()

    def _judge(self, error: OSError) -> None:
        if not self._wait_for_ready and not isinstance(error, TimeoutError):
            found = not isinstance(error, socket.gaierror)
            reason = f"{NOBODY} {self._address}" if found else f"cannot find {self._address} ({error})"
            raise ConnectionFailed(self._address, reason) from error

    def _patience(self, end: float, deadline: Deadline) -> float:
        left = end - time.monotonic()
        if left <= 0:
            reason = f"no connection to {self._address} within {self._connect_timeout} s"
            raise ConnectionFailed(self._address, reason)
        remaining = deadline.remaining()
        return min(left, _LONGEST_PROBE_SECONDS, left if remaining is None else remaining)


def _check_seconds(name: str, value: float) -> None:
    if not isinstance(value, Real) or not value > 0:
        raise InvalidRequest(f"{name}: {value!r} is no positive number of seconds")


def _unix_path(address: str) -> str:
    """The path, of "unix:PATH" or of "unix:///PATH"."""
    path = address.removeprefix("unix:")
    return path.removeprefix("//") if path.startswith("///") else path


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)
