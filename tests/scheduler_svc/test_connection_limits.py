"""What one caller may send and hold open: messages, headers, streams, connections."""

import contextlib
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from fuzzing import holdings
from grpc_health.v1 import health_pb2, health_pb2_grpc
from scheduler_harness import Service, refused, run

import nanoserve_client as ns
from nanoserve.address import (
    CHANNEL_OPTIONS,
    MAX_METADATA_BYTES,
    MAX_REQUEST_BYTES,
    MAX_STREAMS_PER_CONNECTION,
)
from nanoserve.v1.inference_pb2 import GetModelRequest, TokenizeRequest
from nanoserve.v1.inference_pb2_grpc import InferenceServiceStub
from nanoserve_client.supervisor import LocalServer

NUM_IDLE = 10_000
# Files that the process itself needs, and then some.
_SPARE_FILES = 500
_MAX_BYTES_A_CONNECTION = 64 * 1024
# An HTTP/2 client's first words: the preface, and empty SETTINGS.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("api_workers", [0, 1])
def test_an_oversized_message_is_refused_and_the_server_goes_on(api_workers: int, tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path, api_workers=api_workers) as service:
            await service.serving()
            with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
                await service.stub.Tokenize(TokenizeRequest(text="x" * MAX_REQUEST_BYTES), timeout=20)
            assert (await service.stub.Tokenize(TokenizeRequest(text="x"), timeout=20)).token_ids

    run(test)


def test_oversized_headers_are_refused_and_the_connection_goes_on(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            large = (("x-large", "x" * MAX_METADATA_BYTES),)
            with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
                await service.stub.GetModel(GetModelRequest(), metadata=large, timeout=20)
            fair = (("x-large", "x" * (MAX_METADATA_BYTES // 2)),)
            assert (await service.stub.GetModel(GetModelRequest(), metadata=fair, timeout=20)).vocab_size

    run(test)


def test_a_connection_carries_so_many_streams_and_others_go_on(served_alone: LocalServer):
    address = served_alone.address
    with one_connection(address) as channel, one_connection(address) as other:
        health, stub = health_pb2_grpc.HealthStub(channel), InferenceServiceStub(channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(MAX_STREAMS_PER_CONNECTION)]
        for watch in watches:
            next(watch)
        with pytest.raises(grpc.RpcError) as refusal:
            stub.GetModel(GetModelRequest(), timeout=1)
        assert refusal.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert InferenceServiceStub(other).GetModel(GetModelRequest(), timeout=20).vocab_size
        watches.pop().cancel()
        assert stub.GetModel(GetModelRequest(), timeout=20).vocab_size
        for watch in watches:
            watch.cancel()


def one_connection(address: str) -> grpc.Channel:
    options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
    return grpc.insecure_channel(address, options=options)


@contextlib.contextmanager
def idle_connections(address: str, count: int, hello: bytes) -> Iterator[list[socket.socket]]:
    """So many connections on which `hello` is all that is ever said."""
    host, _, port = address.rpartition(":")
    with contextlib.ExitStack() as stack:
        connections = []
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
            connection.sendall(hello)
            connections.append(connection)
        yield connections


@pytest.mark.slow
@pytest.mark.parametrize("hello", [_HELLO, b""], ids=["http2", "silent"])
def test_ten_thousand_idle_connections_disturb_nobody_and_leave_nothing_behind(
    hello: bytes, served_alone: LocalServer
):
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Server and client are two processes, each of which needs a file a connection.
    count = min(NUM_IDLE, soft - _SPARE_FILES)
    pid = served_alone.scheduler_pid
    with ns.Client(served_alone.address) as client:

        def ask() -> list[int]:
            return client.generate([1, 2, 3], max_tokens=8, ignore_eos=True, seed=7, timeout=60).token_ids

        answers = [ask()]
        before, files_before = holdings(pid)
        with idle_connections(served_alone.address, count, hello):
            answers += [ask() for _ in range(20)]
            during, files_during = holdings(pid)
        assert files_during - files_before >= count
        assert len(set(map(tuple, answers))) == 1
        assert during - before < count * _MAX_BYTES_A_CONNECTION
        # Fewer where the limit of open files is lower.
        print(
            f"{count} idle connections: {(during - before) // count} bytes each, {files_during} files in all"
        )
        deadline = time.monotonic() + 60
        while holdings(pid)[1] > files_before + _SPARE_FILES:
            assert time.monotonic() < deadline, "connections that were closed are still held"
            time.sleep(0.1)
        assert ask() == answers[0]


@pytest.fixture
def served_alone() -> Iterator[LocalServer]:
    """A scheduler that has a process, and so a limit of files, of its own."""
    with LocalServer(executor_flags=["--virtual"]) as server:
        yield server
