"""Both clients when nobody listens, when time is up, and when a server comes back."""

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fake_server
import grpc
import pytest
from both_clients import KINDS, call

import nanoserve_client as ns


@pytest.fixture
def servicer() -> fake_server.FakeServicer:
    return fake_server.FakeServicer(fake_server.echo)


@pytest.fixture
def address(servicer: fake_server.FakeServicer) -> Iterator[str]:
    with fake_server.running(servicer) as address:
        yield address


@KINDS
def test_the_timeout_is_a_deadline_that_the_server_sees(kind: str) -> None:
    servicer = fake_server.FakeServicer(fake_server.endless)
    with fake_server.running(servicer) as address:
        with pytest.raises(ns.DeadlineExceeded):
            call(kind, address, "generate", "x", timeout=0.2)
        assert servicer.ended.wait(10)


@KINDS
@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), "5"])
def test_a_timeout_is_positive(kind: str, timeout: Any, address: str) -> None:
    with pytest.raises(ns.InvalidRequest, match=r"^timeout: "):
        call(kind, address, "generate", "x", timeout=timeout)
    with pytest.raises(ns.InvalidRequest, match=r"^connect_timeout: "):
        call(kind, address, "generate", "x", connect={"connect_timeout": timeout})


@KINDS
@pytest.mark.parametrize("timeout", [1e6, 3e7, 1e10, float("inf"), 10**400])
def test_a_timeout_may_be_as_long_as_one_likes(kind: str, timeout: float, address: str) -> None:
    connect = {"connect_timeout": timeout}
    assert call(kind, address, "generate", "hi", timeout=timeout, connect=connect).text == "hi"
    assert call(kind, address, "get_load", timeout=timeout, connect=connect).num_steps == 8


@KINDS
def test_a_closed_client_says_so(kind: str, address: str) -> None:
    async def use_closed_async() -> None:
        client = ns.AsyncClient(address)
        await client.get_load()
        stream = client.stream("x")
        await client.close()
        with pytest.raises(ns.NanoserveError, match="closed"):
            await anext(stream)
        await client.get_load()

    def use_closed_sync() -> None:
        client = ns.Client(address)
        client.get_load()
        stream = client.stream("x")
        client.close()
        with pytest.raises(ns.NanoserveError, match="closed"):
            next(stream)
        client.get_load()

    with pytest.raises(ns.NanoserveError, match="the client has been closed"):
        use_closed_sync() if kind == "sync" else asyncio.run(use_closed_async())


@KINDS
def test_closing_a_client_ends_its_streams(kind: str) -> None:
    servicer = fake_server.FakeServicer(fake_server.endless)

    def read(address: str) -> None:
        client = ns.Client(address)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(client.generate, "x")
            assert servicer.begun.wait(10)
            client.close()
            with pytest.raises(ns.NanoserveError, match="the client has been closed"):
                reading.result(10)

    async def read_async(address: str) -> None:
        client = ns.AsyncClient(address)
        reading = asyncio.create_task(client.generate("x"))
        assert await asyncio.to_thread(servicer.begun.wait, 10)
        await client.close()
        with pytest.raises(ns.NanoserveError, match="the client has been closed"):
            async with asyncio.timeout(10):
                await reading

    with fake_server.running(servicer) as address:
        read(address) if kind == "sync" else asyncio.run(read_async(address))
        assert servicer.ended.wait(10)


@KINDS
@pytest.mark.parametrize("method", ["generate", "get_load"])
def test_a_client_that_is_closed_when_it_has_connected_says_so(
    kind: str, method: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def use(client: ns.Client) -> None:
        connect = client._connector.connect

        def close_meanwhile(*told: Any) -> None:
            connect(*told)
            client.close()

        monkeypatch.setattr(client._connector, "connect", close_meanwhile)
        client.generate("x") if method == "generate" else client.get_load()

    async def use_async(client: ns.AsyncClient) -> None:
        connect = client._connector.connect_async

        async def close_meanwhile(*told: Any) -> None:
            await connect(*told)
            await client.close()

        monkeypatch.setattr(client._connector, "connect_async", close_meanwhile)
        await (client.generate("x") if method == "generate" else client.get_load())

    with pytest.raises(ns.NanoserveError, match="the client has been closed"):
        use(ns.Client(address)) if kind == "sync" else asyncio.run(use_async(ns.AsyncClient(address)))


@KINDS
@pytest.mark.parametrize("what", ["client", "stream"])
def test_whoever_is_closed_waits_for_no_server(kind: str, what: str, tmp_path: Path) -> None:
    nobody = f"unix:{tmp_path}/nobody"

    def read() -> list[ns.Event]:
        client = ns.Client(nobody, connect_timeout=60.0, wait_for_ready=True)
        stream = client.stream("x")
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(list, stream)
            time.sleep(0.3)
            (client if what == "client" else stream).close()
            return reading.result(10)

    async def read_async() -> list[ns.Event]:
        client = ns.AsyncClient(nobody, connect_timeout=60.0, wait_for_ready=True)
        stream = client.stream("x")

        async def read_all() -> list[ns.Event]:
            return [event async for event in stream]

        reading = asyncio.create_task(read_all())
        await asyncio.sleep(0.3)
        await client.close() if what == "client" else stream.close()
        async with asyncio.timeout(10):
            return await reading

    def events() -> list[ns.Event]:
        return read() if kind == "sync" else asyncio.run(read_async())

    if what == "stream":
        assert events() == []
    else:
        with pytest.raises(ns.NanoserveError, match="the client has been closed"):
            events()


@KINDS
def test_a_refused_connection_fails_at_once(kind: str, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/nobody"
    for method in ("generate", "tokenize"):
        with pytest.raises(ns.ConnectionFailed, match="nothing listens at unix:") as caught:
            call(kind, address, method, "x", connect={"connect_timeout": 60.0})
        assert caught.value.address == address
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE


@KINDS
def test_waiting_for_a_server_ends_in_time(kind: str, tmp_path: Path) -> None:
    connect = {"connect_timeout": 0.2, "wait_for_ready": True}
    with pytest.raises(ns.ConnectionFailed, match=r"within 0\.2 s"):
        call(kind, f"unix:{tmp_path}/nobody", "get_load", connect=connect)
    connect["connect_timeout"] = 60.0
    with pytest.raises(ns.DeadlineExceeded):
        call(kind, f"unix:{tmp_path}/nobody", "get_load", connect=connect, timeout=0.2)


@KINDS
def test_a_server_that_starts_late_is_waited_for(kind: str, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/late"
    connect = {"connect_timeout": 60.0, "wait_for_ready": True}
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(call, kind, address, "generate", "hi", connect=connect)
        time.sleep(0.3)
        assert not pending.done()
        with fake_server.running(fake_server.FakeServicer(fake_server.echo), address):
            assert pending.result(30).text == "hi"


def test_a_client_finds_its_server_again_after_a_restart(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/s"
    with ns.Client(address) as client:
        with fake_server.running(fake_server.FakeServicer(fake_server.echo), address):
            assert client.generate("a").text == "a"
        with pytest.raises(ns.Unavailable):
            client.get_load()
        with pytest.raises(ns.ConnectionFailed):
            client.generate("b")
        with fake_server.running(fake_server.FakeServicer(fake_server.echo), address):
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:  # the channel may still sit out its backoff
                with contextlib.suppress(ns.Unavailable):
                    assert client.generate("c").text == "c"
                    return
            raise AssertionError("no connection")


@KINDS
@pytest.mark.parametrize(
    "address", ["", "localhost", "host:port", "unix:", "host:70000", "https://host:1", None]
)
def test_an_address_is_checked(kind: str, address: Any) -> None:
    with pytest.raises(ns.InvalidRequest, match=r"^address: "):
        call(kind, address, "get_load")


class PeerServicer(fake_server.FakeServicer):
    """Notes from which connection each generation comes, and lets all of them go on only when told."""

    def __init__(self) -> None:
        super().__init__(fake_server.echo)
        self.peers: list[str] = []
        self.go_on = threading.Event()

    def Generate(self, request: Any, context: Any) -> Iterator[Any]:
        self.peers.append(context.peer())
        assert self.go_on.wait(20)
        yield from super().Generate(request, context)


@pytest.mark.parametrize(
    ("connections", "num_streams", "expected"), [(1, 6, [6]), (3, 6, [2, 2, 2]), (8, 2, [1, 1])]
)
@KINDS
def test_streams_at_once_are_spread_evenly_over_the_connections(
    kind: str, connections: int, num_streams: int, expected: list[int]
) -> None:
    servicer = PeerServicer()

    def arrived() -> bool:
        if len(servicer.peers) == num_streams:
            servicer.go_on.set()
        return servicer.go_on.is_set()

    async def generate_async(address: str) -> None:
        async with ns.AsyncClient(address, connections=connections) as client:
            tasks = [asyncio.ensure_future(client.generate("hi")) for _ in range(num_streams)]
            while not arrived():  # noqa: ASYNC110 (the server is in another thread)
                await asyncio.sleep(0.005)
            assert [task.text for task in await asyncio.gather(*tasks)] == ["hi"] * num_streams

    def generate(address: str) -> None:
        with ns.Client(address, connections=connections) as client, ThreadPoolExecutor(num_streams) as pool:
            texts = pool.map(lambda _: client.generate("hi").text, range(num_streams))
            while not arrived():
                time.sleep(0.005)
            assert list(texts) == ["hi"] * num_streams

    with fake_server.running(servicer) as address:
        if kind == "sync":
            generate(address)
        else:
            asyncio.run(generate_async(address))
    assert sorted(Counter(servicer.peers).values()) == expected


@KINDS
def test_one_call_at_a_time_takes_one_connection_however_it_ends(kind: str) -> None:
    servicer = PeerServicer()
    servicer.go_on.set()

    async def use_async(address: str) -> None:
        async with ns.AsyncClient(address, connections=4) as client:
            for _ in range(3):
                await client.generate("hi")
                async with client.stream("hi") as stream:
                    await anext(stream)
                stream.close()
                await settled(client)

    async def settled(client: Any) -> None:
        async with asyncio.timeout(20):
            while any(lane.num_streams for lane in client._lanes._lanes):  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    def use(address: str) -> None:
        with ns.Client(address, connections=4) as client:
            for _ in range(3):
                client.generate("hi")
                with client.stream("hi") as stream:
                    next(stream)
                asyncio.run(settled(client))

    with fake_server.running(servicer) as address:
        if kind == "sync":
            use(address)
        else:
            asyncio.run(use_async(address))
    assert len(set(servicer.peers)) == 1
    assert len(servicer.peers) == 6


@KINDS
@pytest.mark.parametrize("connections", [0, 257, -1, True, 1.5, "4"])
def test_the_number_of_connections_is_bounded(kind: str, connections: Any, address: str) -> None:
    with pytest.raises(ns.InvalidRequest, match=r"^connections: must be in \[1, 256\]"):
        call(kind, address, "get_load", connect={"connections": connections})


@KINDS
def test_the_whole_of_a_stream_that_was_given_up_is_asked_for_in_vain(kind: str, address: str) -> None:
    def read() -> None:
        with ns.Client(address) as client:
            stream = client.stream("hi")
            next(stream)
            stream.close()
            stream.result()

    async def read_async() -> None:
        async with ns.AsyncClient(address) as client:
            stream = client.stream("hi")
            await anext(stream)
            stream.close()
            await stream.result()

    with pytest.raises(ns.NanoserveError, match="given up before its end"):
        read() if kind == "sync" else asyncio.run(read_async())
