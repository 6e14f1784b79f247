"""How ranks find rank 0 by a store that may be older than they are."""

import socket
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from torch.distributed import HashStore, Store

from executor_svc.parallel import join
from executor_svc.parallel.join import accept_ranks, connect_to_leader
from executor_svc.parallel.place import Place

SIZE = 3
WAIT_SECONDS = 20.0
_Meeting = dict[int, tuple[Sequence[socket.socket], Store]]


def place_of(rank: int) -> Place:
    return Place(rank, SIZE, rank, SIZE, "127.0.0.1")


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "_HELLO_SECONDS", 0.3)


@pytest.fixture
def start() -> Iterator[Callable[[Store, int], threading.Thread]]:
    """Starts a rank in a thread; all must have met at the end."""
    threads, met = [], _Meeting()

    def run(store: Store, rank: int) -> None:
        if rank == 0:
            met[rank] = accept_ranks(store, place_of(rank), lambda rank, connection: None)
        else:
            connection, own = connect_to_leader(store, place_of(rank))
            met[rank] = [connection], own

    def start(store: Store, rank: int) -> threading.Thread:
        thread = threading.Thread(target=run, args=(store, rank), daemon=True)
        thread.start()
        threads.append(thread)
        return thread

    yield start
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert_met(met)


def assert_met(met: _Meeting) -> None:
    """Each rank has its own socket to rank 0, and all have the same part of the store."""
    connections, store = met[0]
    store.set("who", "rank 0")
    for rank, connection in enumerate(connections, 1):
        ((other,), own) = met[rank]
        assert own.get("who") == b"rank 0"
        connection.sendall(bytes([rank]))
        other.settimeout(WAIT_SECONDS)
        assert other.recv(2) == bytes([rank])
        connection.close()
        other.close()


def test_ranks_meet_in_any_order(start: Callable[[Store, int], threading.Thread]) -> None:
    store = HashStore()
    for rank in (2, 0, 1):
        start(store, rank)


def test_what_an_earlier_rank_0_wrote_is_no_place_to_meet(
    start: Callable[[Store, int], threading.Thread],
) -> None:
    store = HashStore()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    store.set("nanoserve/leader", f"{port} {32 * '0'}")
    others = [start(store, rank) for rank in (1, 2)]
    others[0].join(0.5)
    assert all(other.is_alive() for other in others)
    start(store, 0)


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 400 Bad Request, and more of this kind\r\n"])
def test_whoever_has_an_earlier_port_now_is_not_rank_0(
    start: Callable[[Store, int], threading.Thread], answer: bytes | None
) -> None:
    store = HashStore()
    with socket.create_server(("127.0.0.1", 0)) as server:
        store.set("nanoserve/leader", f"{server.getsockname()[1]} {32 * '0'}")
        other = start(store, 1)
        stranger, _ = server.accept()
        with stranger:
            if answer is not None:
                stranger.sendall(answer)
                stranger.shutdown(socket.SHUT_WR)
            other.join(0.5)
            assert other.is_alive()
    start(store, 2)
    start(store, 0)


@pytest.mark.parametrize("hello", [b"", b"GET / HTTP/1.1\r\n\r\n", 32 * b"0"])
def test_a_stranger_keeps_nobody_from_meeting(
    start: Callable[[Store, int], threading.Thread], hello: bytes
) -> None:
    store = HashStore()
    start(store, 0)
    port, _ = store.get("nanoserve/leader").decode().split()
    with socket.create_connection(("127.0.0.1", int(port))) as stranger:
        stranger.sendall(hello)
        start(store, 1)
        start(store, 2).join(WAIT_SECONDS)
        stranger.settimeout(WAIT_SECONDS)
        assert stranger.recv(1) == b""
