"""The sockets between ranks: plans in their order, and who is lost."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from executor_svc.parallel import link
from executor_svc.parallel.link import FollowerEnd, LeaderEnd, StartWatch

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


@pytest.fixture
def lost_at_start(monkeypatch: pytest.MonkeyPatch) -> Lost:
    monkeypatch.setattr(link, "START_GRACE_SECONDS", 0.05)
    return Lost()


def test_a_rank_whose_connection_closes_at_the_start_is_lost(
    ends: tuple[socket.socket, socket.socket], lost_at_start: Lost
) -> None:
    with StartWatch(lost_at_start) as watch:
        watch.add(1, ends[0])
        assert not lost_at_start.told.wait(3 * SILENCE_SECONDS), "at the start ranks may be silent"
        ends[1].close()
        assert lost_at_start.told.wait(WAIT_SECONDS)
    assert lost_at_start.reasons == ["its connection closed at the start"]


def test_the_ends_take_over_from_the_watch_of_the_start(
    ends: tuple[socket.socket, socket.socket], lost_at_start: Lost
) -> None:
    with StartWatch(lost_at_start) as watch, StartWatch(lost_at_start) as other:
        watch.add(1, ends[0])
        other.add(0, ends[1])
        follower = FollowerEnd(ends[1], lost_at_start)
    leader = LeaderEnd(1, ends[0], lost_at_start)
    time.sleep(2.5 * SILENCE_SECONDS)
    leader.plan(b"plan")
    assert next(follower.messages()) == b"plan"
    leader.close()
    assert list(follower.messages()) == []
    ends[1].close()
    assert not lost_at_start.told.wait(SILENCE_SECONDS)
