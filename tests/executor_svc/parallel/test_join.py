"""How ranks find rank 0 by a store that may be older than they are."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from queue import SimpleQueue

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


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", 32 * b"0"])
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
                with contextlib.suppress(OSError):  # it may have hung up at the first byte
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


def test_a_rank_that_has_come_before_is_not_welcome_again_but_asks_until_rank_0_starts_anew(
    start: Callable[[Store, int], threading.Thread],
) -> None:
    store = HashStore()
    came: SimpleQueue[socket.socket] = SimpleQueue()

    def first_start() -> None:
        with contextlib.suppress(TimeoutError):
            accept_ranks(store, place_of(0), lambda rank, connection: came.put(connection))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(join, "_PATIENCE", timedelta(seconds=2))
        first = threading.Thread(target=first_start, daemon=True)
        first.start()
        store.get("nanoserve/leader")
    connection, _ = connect_to_leader(store, place_of(1))
    with connection, came.get(timeout=WAIT_SECONDS):
        again = start(store, 1)
        first.join(WAIT_SECONDS)
        assert again.is_alive()
    start(store, 0)
    start(store, 2)


def test_rank_0_names_those_who_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "_PATIENCE", timedelta(seconds=0.5))
    store = HashStore()
    came: SimpleQueue[socket.socket] = SimpleQueue()
    other = threading.Thread(target=lambda: connect_to_leader(store, place_of(2))[0].close(), daemon=True)
    other.start()
    with pytest.raises(TimeoutError, match=r"ranks \[1\] have not come"):
        accept_ranks(store, place_of(0), lambda rank, connection: came.put(connection))
    came.get(timeout=WAIT_SECONDS).close()
    other.join(WAIT_SECONDS)
