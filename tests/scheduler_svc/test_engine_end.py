"""The engine's end: whatever brings it, every request has one too, and the engine does end."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from scheduler_svc import messages as msg
from scheduler_svc.admission import Admission
from scheduler_svc.core.request import Guide, Request
from scheduler_svc.core.scheduler import CoreConfig
from scheduler_svc.core.step import Session, StepPlan
from scheduler_svc.engine import Engine
from scheduler_svc.executor_access import ExecutorAccess
from scheduler_svc.grammar_store import GrammarStore
from scheduler_svc.guides import Guides
from scheduler_svc.link_events import Fenced, LinkEvent, LinkFailed, SessionOpened
from scheduler_svc.profiler import Profiler

SESSION = Session("an instance", 12, 4, 4, 40, 16, 13)
OPENED = SessionOpened(SESSION, 1, "weights")


class SilentLink:
    """A link whose events are the test's, to an executor that never answers."""

    def __init__(self) -> None:
        self.sent: list[StepPlan] = []
        self.emit: Callable[[LinkEvent], None] = lambda event: None

    async def run(self, emit: Callable[[LinkEvent], None]) -> None:
        self.emit = emit
        await asyncio.Event().wait()

    def send(self, plan: StepPlan) -> None:
        self.sent.append(plan)

    def abandon(self) -> None:
        """There is no stream."""


class SlowGuides(Guides):
    """Guides whose grammars never come."""

    def __init__(self, post: Any) -> None:
        super().__init__(GrammarStore(str, ()), post)

    def prepare(self, vocab_size: int) -> None:
        """Nothing will be compiled."""

    async def _compile(self, command: msg.Submit) -> None:
        await asyncio.Event().wait()


def submit(key: int, guide: Guide | None = None) -> msg.Submit:
    return msg.Submit(key, Request(f"r{key}", np.array([1, 2], np.int32), 5, guide=guide))


def fail(*arguments: Any) -> Any:
    raise RuntimeError("a bug")


async def started() -> tuple[Engine, SilentLink, Any, list[msg.Event], "asyncio.Task[Any]"]:
    """An engine with an open session."""
    inbox: Any = asyncio.Queue()
    link, events = SilentLink(), []
    engine = Engine(
        CoreConfig(max_num_batched_tokens=16),
        Admission(8, None),
        inbox,
        link,
        events.append,
        Profiler(ExecutorAccess("unix:nowhere"), events.append),
        guides=SlowGuides(inbox.put_nowait),
    )
    task = asyncio.ensure_future(engine.run())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    link.emit(OPENED)
    return engine, link, inbox, events, task


@pytest.mark.parametrize("end", [Fenced("another"), LinkFailed("broken")])
def test_a_request_that_came_just_before_the_end_is_refused(end: LinkEvent):
    async def test() -> None:
        _, link, inbox, events, task = await started()
        inbox.put_nowait(submit(7))
        link.emit(end)
        await asyncio.wait_for(task, 10)
        (refused,) = [event for event in events if isinstance(event, msg.Refused | msg.Accepted)]
        assert isinstance(refused, msg.Refused)
        assert refused.problem.code is msg.Code.UNAVAILABLE
        assert link.sent == []

    asyncio.run(test())


@pytest.mark.parametrize("end", [Fenced("another"), LinkFailed("broken"), msg.Drain(1, None)])
def test_a_request_that_waits_for_its_grammar_is_refused_at_the_end(end: LinkEvent | msg.Drain):
    async def test() -> None:
        _, link, inbox, events, task = await started()
        inbox.put_nowait(submit(7, Guide("regex", "a")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if isinstance(end, msg.Drain):
            inbox.put_nowait(end)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
        else:
            link.emit(end)
            await asyncio.wait_for(task, 10)
        (refused,) = [event for event in events if isinstance(event, msg.Refused | msg.Accepted)]
        assert isinstance(refused, msg.Refused)
        assert (refused.key, refused.problem.code) == (7, msg.Code.UNAVAILABLE)

    asyncio.run(test())


def test_a_request_under_way_ends_with_the_engine():
    async def test() -> None:
        _, link, inbox, events, task = await started()
        inbox.put_nowait(submit(7))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(link.sent) == 2
        link.emit(Fenced("another"))
        await asyncio.wait_for(task, 10)
        ends = [end for event in events if isinstance(event, msg.StepBatch) for end in event.ended]
        assert [end.key for end in ends] == [7]

    asyncio.run(test())


def test_a_failure_in_the_watch_over_steps_ends_an_engine_that_nobody_speaks_to(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("scheduler_svc.engine.TICK_SECONDS", 0.01)

    async def test() -> None:
        engine, _, _, _, task = await started()
        monkeypatch.setattr(engine._failures, "tick", fail)
        assert (await asyncio.wait_for(task, 10)).is_failure

    asyncio.run(test())


def test_a_core_that_fails_twice_does_not_keep_the_engine_from_ending(monkeypatch: pytest.MonkeyPatch):
    async def test() -> None:
        engine, _, inbox, _, task = await started()
        inbox.put_nowait(submit(7))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        core = engine._core
        assert core is not None
        monkeypatch.setattr(core, "abort", fail)
        monkeypatch.setattr(core, "schedule", fail)
        inbox.put_nowait(submit(8))
        assert (await asyncio.wait_for(task, 10)).is_failure

    asyncio.run(test())
