"""Ranks that meet: only where they should, and a signal ends the wait for those that do not come."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from executor_svc.parallel.leader import loopback_store

FLAGS = ["--device=cpu", "--tensor-parallel-size=2", "--num-kv-blocks=9", "--listen=127.0.0.1:0"]
START_SECONDS = 120.0
END_SECONDS = 5.0


def listeners(port: int) -> list[str]:
    """The addresses, in the kernel's hexadecimal, at which anybody listens on a port."""
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            if state == "0A" and int(address.rpartition(":")[2], 16) == port:
                found.append(address.rpartition(":")[0])
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's tables")
def test_the_store_of_one_host_is_open_to_that_host_alone() -> None:
    store, port = loopback_store(2)
    assert listeners(port) == ["0100007F"]
    other = torch.distributed.TCPStore("127.0.0.1", port, 2, is_master=False)
    store.set("key", "value")
    assert other.get("key") == b"value"


def place_of(rank: int, port: int) -> dict[str, str]:
    """What torchrun would say to one of two ranks on one host."""
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return place | {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}


@pytest.fixture
def lonely() -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """Rank 0 of two, as torchrun would start it, and the port at which it waits for the other."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "executor_svc", *FLAGS]
    process = subprocess.Popen(command, env=os.environ | place_of(0, port))
    yield process, port
    process.kill()
    process.wait()


def wait_until_it_waits(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not listeners(port):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's tables")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_rank_that_waits_for_another_to_join(
    lonely: tuple["subprocess.Popen[bytes]", int], number: signal.Signals
) -> None:
    process, port = lonely
    wait_until_it_waits(process, port)
    process.send_signal(number)
    assert process.wait(END_SECONDS) == 0


_SAYS_NO_MORE = """
import sys, time, torch
from executor_svc.parallel.join import connect_to_leader, join_group
from executor_svc.parallel.place import Place

place = Place(1, 2, 1, 2, "127.0.0.1")
store = torch.distributed.TCPStore("127.0.0.1", int(sys.argv[1]), 2, is_master=False)
connection, store = connect_to_leader(store, place)
join_group(store, place, torch.device("cpu"))
print("joined", flush=True)
time.sleep(600)
"""


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's tables")
def test_a_signal_ends_a_rank_that_waits_in_the_first_collective(
    lonely: tuple["subprocess.Popen[bytes]", int],
) -> None:
    process, port = lonely
    wait_until_it_waits(process, port)
    command = [sys.executable, "-c", _SAYS_NO_MORE, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"joined\n"
            time.sleep(0.5)  # it is past everything but that
            process.send_signal(signal.SIGTERM)
            assert process.wait(END_SECONDS) == 0
        finally:
            other.kill()


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's tables")
def test_a_rank_that_cannot_start_ends_the_one_that_waits_for_it(
    lonely: tuple["subprocess.Popen[bytes]", int],
) -> None:
    process, port = lonely
    wait_until_it_waits(process, port)
    command = [sys.executable, "-m", "executor_svc", *FLAGS, "--model=/nonexistent"]
    environment = os.environ | place_of(1, port)
    other = subprocess.run(command, env=environment, timeout=START_SECONDS, capture_output=True, text=True)
    assert other.returncode == 1
    assert "--model: /nonexistent: no such directory" in other.stdout + other.stderr
    assert process.wait(END_SECONDS) == 1
