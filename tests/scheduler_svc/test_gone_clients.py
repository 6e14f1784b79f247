"""Clients that are gone without a word, and clients that do not read: neither costs others anything for long."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from scheduler_harness import Service, generate_request, run

from nanoserve.address import CHANNEL_OPTIONS, SERVER_OPTIONS
from nanoserve.v1.inference_pb2_grpc import InferenceServiceStub

SERVER, CHANNEL = dict(SERVER_OPTIONS), dict(CHANNEL_OPTIONS)


class Wire:
    """A proxy that can stop carrying anything, as a cable does that is pulled."""

    def __init__(self) -> None:
        self.is_cut = False
        self.address = ""

    @contextlib.asynccontextmanager
    async def to(self, target: str) -> AsyncIterator["Wire"]:
        tasks: set[asyncio.Task[None]] = set()

        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while data := await reader.read(65536):
                    if self.is_cut:
                        await asyncio.Event().wait()
                    writer.write(data)
                    await writer.drain()
            finally:
                writer.close()

        async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far_reader, far_writer = await asyncio.open_unix_connection(target.removeprefix("unix:"))
            for task in (carry(reader, far_writer), carry(far_reader, writer)):
                tasks.add(asyncio.ensure_future(task))

        server = await asyncio.start_server(connect, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def test_a_peer_that_says_nothing_is_given_up_within_30_seconds_and_one_that_pings_each_10_is_welcome():
    for options in (SERVER, CHANNEL):
        assert options["grpc.keepalive_time_ms"] + options["grpc.keepalive_timeout_ms"] <= 30_000
    assert SERVER["grpc.http2.min_ping_interval_without_data_ms"] < 10_000
    assert SERVER["grpc.keepalive_permit_without_calls"] == 1


def test_a_client_whose_cable_is_pulled_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    soon = {"grpc.keepalive_time_ms": 300, "grpc.keepalive_timeout_ms": 300}
    monkeypatch.setattr("scheduler_svc.api_server.SERVER_OPTIONS", list((SERVER | soon).items()))

    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            async with Wire().to(service.address) as wire:
                async with grpc.aio.insecure_channel(wire.address) as channel:
                    # An executor that is away, so that nothing would be written to the client.
                    request = generate_request([1, 2], max_tokens=200)
                    await service.executor.stop()
                    await service.until(lambda load: not load.executor_healthy)
                    call = InferenceServiceStub(channel).Generate(request)
                    await service.until(lambda load: load.num_waiting_requests == 1)
                    wire.is_cut = True
                    await service.until(lambda load: load.num_waiting_requests == 0)
                    call.cancel()
            service.executor.start()

    run(test)


def test_a_client_that_never_reads_keeps_nobody_waiting(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            async with Wire().to(service.address) as wire:
                async with grpc.aio.insecure_channel(wire.address) as channel:
                    wire_full = InferenceServiceStub(channel).Generate(
                        generate_request([1, 2], max_tokens=200, n=4, logprobs=20)
                    )
                    await service.until(lambda load: load.num_output_tokens > 0)
                    wire.is_cut = True
                    # Others are served meanwhile, and what the silent one asked for has its own end.
                    for i in range(5):
                        assert len((await service.generate([i, 3], max_tokens=20)).token_ids[0]) == 20
                    await service.until_idle()
                    wire_full.cancel()

    run(test)
