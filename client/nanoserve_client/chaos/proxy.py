"""A proxy of bytes between two sockets, whose connections can be cut, refused, stalled or made slow."""

import asyncio
import os
import socket
import struct
from contextlib import suppress

from nanoserve_client.connection import open_connection

_CHUNK_BYTES = 65536
# Closing a socket with it sends a reset instead of an end.
_RESET = struct.pack("ii", 1, 0)


class ByteProxy:
    """Passes on what comes, both ways. All of its methods are called in the event loop that `start` ran in."""

    def __init__(self, listen: str, upstream: str) -> None:
        """Both addresses are host:port or unix:PATH; a port 0 of `listen` is picked at the start."""
        self.address = listen
        self.upstream = upstream
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._num_stalls = 0
        self._num_refusals = 0
        self._latencies: list[float] = []
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listens."""
        if self.address.startswith("unix:"):
            path = self.address.removeprefix("unix:")
            self._server = await asyncio.start_unix_server(self._take, path)
        else:
            host, _, port = self.address.rpartition(":")
            self._server = await asyncio.start_server(self._take, host, int(port))
            self.address = f"{host}:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """Ends all connections and stops listening."""
        if self._server is not None:
            self._server.close()
        connections = list(self._connections)
        self.cut()
        await asyncio.gather(*connections, return_exceptions=True)
        if self.address.startswith("unix:"):
            with suppress(OSError):
                os.unlink(self.address.removeprefix("unix:"))

    def cut(self) -> None:
        """Resets every connection there is."""
        for connection in list(self._connections):
            connection.cancel()

    async def refuse(self, seconds: float) -> None:
        """Cuts, and takes no connection for a while: each is closed as soon as it is made."""
        self._num_refusals += 1
        self.cut()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._num_refusals -= 1

    async def stall(self, seconds: float) -> None:
        """Passes nothing on for a while; no connection notices but by the silence."""
        self._num_stalls += 1
        self._flowing.clear()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._num_stalls -= 1
            if not self._num_stalls:
                self._flowing.set()

    async def delay(self, latency_seconds: float, seconds: float) -> None:
        """Passes on everything late by `latency_seconds`, for a while."""
        self._latencies.append(latency_seconds)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._latencies.remove(latency_seconds)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # of the server's own
        self._connections.add(task)
        try:
            if not self._num_refusals:
                await self._join(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # cut, or an end of its own
        finally:
            self._connections.discard(task)
            _reset(writer)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carries both ways until either side ends."""
        far_reader, far_writer = await open_connection(self.upstream)
        pumps = [
            asyncio.ensure_future(self._pump(reader, far_writer)),
            asyncio.ensure_future(self._pump(far_reader, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            _reset(far_writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            if self._latencies:
                await asyncio.sleep(sum(self._latencies))
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes at once, dropping what is unsent."""
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.family != socket.AF_UNIX:
        with suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
