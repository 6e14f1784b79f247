"""What the injector makes of a take-over that another fault cuts short, and of one that nobody disturbs."""

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import pytest

from nanoserve_client.chaos import rogue_scheduler
from nanoserve_client.chaos.faults import Injection, Injector
from nanoserve_client.chaos.schedule import Fault

TAKE_OVER = Fault("take_over", "executor", after=0.5, seconds=0.0, count=1, way="leave", seed=1)
KILL = Fault("kill", "executor", after=0.6, seconds=0.0, count=1, way="", seed=2)


class Scheduler:
    """As much of a ManagedProcess as a take-over sees; ends with `status` as soon as it is waited for, None: never."""

    def __init__(self, status: int | None) -> None:
        self.statuses: list[int] = []
        self.tolerates_ends = False
        self.num_excused = 0
        self._status = status

    def excuse_end(self) -> None:
        self.num_excused += 1

    async def wait_end(self, num_ends: int) -> int:
        if self._status is None:
            raise TimeoutError
        self.statuses.append(self._status)
        return self.statuses[num_ends]


def inject(
    monkeypatch: pytest.MonkeyPatch,
    scheduler: Scheduler,
    *others: Fault,
    left: bool = False,
    fenced: bool = True,
) -> Injection:
    class TakeOver:
        def __init__(self, executor: str, way: str, draw: random.Random) -> None:
            self.may_have_fenced = fenced

        async def run(self) -> str:
            if left:
                raise rogue_scheduler.ExecutorLeft("UNAVAILABLE")
            return ""

    monkeypatch.setattr(rogue_scheduler, "TakeOver", TakeOver)
    stack: Any = SimpleNamespace(scheduler=scheduler, executor_address="unix:none", log=lambda *line: None)
    unused: Any = None
    injector = Injector(stack, [TAKE_OVER, *others], [], unused, unused)
    return asyncio.run(injector.inject(TAKE_OVER))


def test_a_fenced_scheduler_ends_with_status_0(monkeypatch: pytest.MonkeyPatch):
    scheduler = Scheduler(0)
    assert inject(monkeypatch, scheduler) == Injection(TAKE_OVER)
    assert not scheduler.num_excused
    assert "status 3" in inject(monkeypatch, Scheduler(3)).problem
    assert "goes on" in inject(monkeypatch, Scheduler(None)).problem


def test_an_executor_that_leaves_of_itself_is_a_problem(monkeypatch: pytest.MonkeyPatch):
    scheduler = Scheduler(0)
    assert "the executor left: UNAVAILABLE" in inject(monkeypatch, scheduler, left=True).problem
    assert not scheduler.num_excused


@pytest.mark.parametrize(("left", "status"), [(True, 0), (False, None)])
def test_beside_another_fault_an_end_that_may_come_later_is_excused_once(
    monkeypatch: pytest.MonkeyPatch, left: bool, status: int | None
):
    scheduler = Scheduler(status)
    injection = inject(monkeypatch, scheduler, KILL, left=left)
    assert injection == Injection(TAKE_OVER, was_injected=not left)
    assert scheduler.num_excused == 1
    assert not scheduler.tolerates_ends


def test_beside_another_fault_nothing_is_excused_that_cannot_have_been_fenced(
    monkeypatch: pytest.MonkeyPatch,
):
    scheduler = Scheduler(0)
    assert not inject(monkeypatch, scheduler, KILL, left=True, fenced=False).was_injected
    assert not scheduler.num_excused
