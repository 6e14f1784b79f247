"""Who has the last word on a request whose grammar is compiled: the one that comes first to the engine."""

import asyncio
from typing import Any, cast

import numpy as np
import pytest

from scheduler_svc import messages as msg
from scheduler_svc.core.request import Guide, Request
from scheduler_svc.grammar_store import GrammarStore
from scheduler_svc.grammars import GrammarError
from scheduler_svc.guides import Compiled, Guides


class Store:
    """Compiles nothing, at once."""

    async def get(self, guide: Guide) -> Any:
        raise GrammarError("none")


def submit(key: int) -> msg.Submit:
    ids = np.array([1], np.int32)
    return msg.Submit(key, Request("id", ids, 3, guide=Guide("regex", "a")), "tenant")


@pytest.mark.parametrize("num_turns", range(8))
def test_a_request_withdrawn_at_any_moment_is_not_taken_in_afterwards(num_turns: int) -> None:
    async def test() -> None:
        posted: list[Any] = []
        guides = Guides(cast(GrammarStore, Store()), posted.append)
        guides.compile(submit(5))
        for _ in range(num_turns):
            await asyncio.sleep(0)
        assert guides.num_compiling("tenant") == 1
        assert guides.withdraw(5)
        await asyncio.sleep(0.01)
        assert all(isinstance(event, Compiled) for event in posted)
        assert not guides.claim(5)
        assert guides.num_compiling("tenant") == 0

    asyncio.run(test())


def test_what_is_compiled_is_claimed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr("scheduler_svc.guides._MAX_COMPILING", 1)
        posted: list[Compiled] = []
        guides = Guides(cast(GrammarStore, Store()), cast(Any, posted.append))
        guides.compile(submit(1))
        guides.compile(submit(2))
        while len(posted) < 2:  # noqa: ASYNC110 (nobody tells of it)
            await asyncio.sleep(0)
        codes = {event.command.key: cast(msg.Problem, event.outcome).code for event in posted}
        assert codes == {1: msg.Code.INVALID_ARGUMENT, 2: msg.Code.RESOURCE_EXHAUSTED}
        for key in (1, 2):
            assert guides.claim(key)
            assert not guides.claim(key)

    asyncio.run(test())
