"""The proxy of bytes: it passes all on unchanged, until it is told to cut, refuse, stall or delay."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nanoserve_client.chaos.proxy import ByteProxy
from nanoserve_client.connection import open_connection

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(4096):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def proxied(folder: Path | None = None) -> AsyncIterator[ByteProxy]:
    """A proxy before an echo, at unix sockets in `folder` where one is given."""
    if folder is None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        proxy = ByteProxy("127.0.0.1:0", f"127.0.0.1:{port}")
    else:
        server = await asyncio.start_unix_server(echo, folder / "echo")
        proxy = ByteProxy(f"unix:{folder / 'proxy'}", f"unix:{folder / 'echo'}")
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.close()
        server.close()


async def ask(ends: Ends, data: bytes) -> bytes:
    reader, writer = ends
    writer.write(data)
    return await asyncio.wait_for(reader.readexactly(len(data)), 20)


@pytest.mark.parametrize("is_unix", [False, True])
def test_bytes_pass_unchanged_both_ways(tmp_path: Path, is_unix: bool):
    async def run() -> None:
        async with proxied(tmp_path if is_unix else None) as proxy:
            data = random.Random(0).randbytes(1 << 20)
            both = [await open_connection(proxy.address), await open_connection(proxy.address)]
            reader, writer = both[0]
            writing = asyncio.ensure_future(_write(writer, data))
            assert await asyncio.wait_for(reader.readexactly(len(data)), 20) == data
            await writing
            assert await ask(both[1], b"still here") == b"still here"
            for _, end in both:
                end.close()

    async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(data)
        await writer.drain()

    asyncio.run(run())


async def is_over(ends: Ends) -> bool:
    """Whether the connection has ended, however."""
    try:
        return await asyncio.wait_for(ends[0].read(1), 20) == b""
    except OSError:
        return True


@pytest.mark.parametrize("is_unix", [False, True])
def test_a_cut_ends_the_connections_there_are_and_no_later_one(tmp_path: Path, is_unix: bool):
    async def run() -> None:
        async with proxied(tmp_path if is_unix else None) as proxy:
            before = await open_connection(proxy.address)
            assert await ask(before, b"hello") == b"hello"
            proxy.cut()
            assert await is_over(before)
            after = await open_connection(proxy.address)
            assert await ask(after, b"again") == b"again"
            for _, writer in (before, after):
                writer.close()

    asyncio.run(run())


def test_while_it_refuses_every_connection_ends_at_once_and_afterwards_none():
    async def run() -> None:
        async with proxied() as proxy:
            refusing = asyncio.ensure_future(proxy.refuse(0.2))
            await asyncio.sleep(0.02)
            refused = await open_connection(proxy.address)
            assert await is_over(refused)
            await refusing
            taken = await open_connection(proxy.address)
            assert await ask(taken, b"in") == b"in"
            for _, writer in (refused, taken):
                writer.close()

    asyncio.run(run())


@pytest.mark.parametrize("how", ["stall", "delay"])
def test_what_is_held_up_comes_later_whole_and_in_order(how: str):
    async def run() -> None:
        async with proxied() as proxy:
            ends = await open_connection(proxy.address)
            assert await ask(ends, b"now") == b"now"
            holding = asyncio.ensure_future(proxy.stall(0.3) if how == "stall" else proxy.delay(0.15, 0.6))
            await asyncio.sleep(0.02)
            began = time.monotonic()
            assert await ask(ends, b"late") == b"late"
            assert time.monotonic() - began > 0.2  # a stall's rest, or two delays
            await holding
            assert await ask(ends, b"now again") == b"now again"
            ends[1].close()

    asyncio.run(run())
