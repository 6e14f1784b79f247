"""The sockets between ranks: plans in their order, and who is lost."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from executor_svc.parallel import link
from executor_svc.parallel.link import FollowerEnd, LeaderEnd

WAIT_SECONDS = 20.0
SILENCE_SECONDS = 0.5


class Lost:
    """Who was lost, and why."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.told = threading.Event()

    def __call__(self, *told: object) -> None:
        self.reasons.append(str(told[-1]))
        self.told.set()


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "SILENCE_SECONDS", SILENCE_SECONDS)
    monkeypatch.setattr(link, "_BEAT_SECONDS", 0.02)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with closing(here), closing(there):
        yield here, there


def start_end(end: int, ends: tuple[socket.socket, socket.socket], lost: Lost) -> None:
    """The other one says nothing."""
    if end == 0:
        LeaderEnd(1, ends[0], lost)
    else:
        FollowerEnd(ends[1], lost)


def test_plans_and_resets_come_in_their_order(ends: tuple[socket.socket, socket.socket]) -> None:
    lost = Lost()
    follower, leader = FollowerEnd(ends[1], lost), LeaderEnd(1, ends[0], lost)
    plans = [bytes([number]) * (number * 50_000 + 1) for number in range(4)]
    for plan in plans:
        leader.plan(plan)
        leader.reset()
    leader.close()
    assert list(follower.messages()) == [message for plan in plans for message in (plan, None)]
    assert lost.reasons == []


def test_a_silence_that_was_announced_loses_nobody(ends: tuple[socket.socket, socket.socket]) -> None:
    lost = Lost()
    follower, leader = FollowerEnd(ends[1], lost), LeaderEnd(1, ends[0], lost)
    for plan in (b"first", b"second"):
        with leader.silence():
            time.sleep(2.5 * SILENCE_SECONDS)
        leader.plan(plan)
        assert next(follower.messages()) == plan
    assert lost.reasons == []
    leader.close()


@pytest.mark.parametrize("end", [0, 1])
def test_any_other_silence_is_a_loss(ends: tuple[socket.socket, socket.socket], end: int) -> None:
    lost = Lost()
    start_end(end, ends, lost)
    assert lost.told.wait(WAIT_SECONDS)
    assert lost.reasons == [f"it said nothing for {SILENCE_SECONDS:g} s"]


@pytest.mark.parametrize("end", [0, 1])
def test_a_socket_that_closes_is_a_loss(ends: tuple[socket.socket, socket.socket], end: int) -> None:
    lost = Lost()
    start_end(1 - end, ends, lost)
    ends[end].close()
    assert lost.told.wait(WAIT_SECONDS)
