"""One end of the socket between the engine and an API worker. Its buffer is bounded: who does not read is dead."""

import asyncio
import socket
from collections.abc import Callable

from scheduler_svc.framing import MAX_FRAME_BYTES, FrameError, FrameReader, frame

# The other side is taken for dead when so much waits for it, or when more than the first waits for so long.
_STALLED_BYTES = 1024 * 1024
_STALL_SECONDS = 10.0
_MAX_UNREAD_BYTES = 2 * MAX_FRAME_BYTES


class FrameConnection(asyncio.Protocol):
    """Sends and receives messages until `lost` says why it is over."""

    def __init__(self, on_message: Callable[[bytes], None], *, stall_seconds: float = _STALL_SECONDS) -> None:
        """`on_message` raises FrameError where a message makes no sense: that ends the connection."""
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._on_message, self._stall_seconds = on_message, stall_seconds
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []
        """What was to be sent before there was a transport."""
        self._stall: asyncio.TimerHandle | None = None

    async def open(self, sock: socket.socket) -> None:
        """Takes over a connected socket."""
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=sock)

    def send(self, data: bytes) -> None:
        """Sends a message; does nothing once the connection is lost. Never waits."""
        if self.lost.done():
            return
        if self._transport is None:
            self._unsent.append(data)
            return
        try:
            self._transport.write(frame(data))
        except FrameError as error:
            self._end(str(error))
        if self._transport.get_write_buffer_size() > _MAX_UNREAD_BYTES:
            self._end("too much is unread")

    def close(self) -> None:
        """Ends the connection; what is unsent is lost."""
        self._end("closed")

    def _end(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=_STALLED_BYTES)
        unsent, self._unsent = self._unsent, []
        for data in unsent:
            self.send(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.resume_writing()
        self._end("the other side is gone" if exc is None else str(exc))

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._reader.feed(data):
                if self.lost.done():
                    return
                self._on_message(message)
        except FrameError as error:
            self._end(str(error))

    def pause_writing(self) -> None:
        loop = asyncio.get_running_loop()
        self._stall = loop.call_later(self._stall_seconds, self._end, "nothing is read")

    def resume_writing(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
