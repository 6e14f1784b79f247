"""Guides that would end the process, or never let it go: they end another one, and nothing else."""

import asyncio
import json
import signal
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from scheduler_harness import LIMITS, demo_model

from scheduler_svc.core.request import Guide
from scheduler_svc.grammar_store import GrammarStore
from scheduler_svc.grammar_trial import GrammarTrial
from scheduler_svc.grammars import GrammarError

GOOD = Guide("regex", "ab")


def chain(name: str, length: int, count: int) -> Guide:
    """A grammar in which each rule, or terminal, is the next one, `count` times."""
    rules = (f"{name}{i}:" + f" {name}{i + 1}" * count for i in range(length))
    return Guide("grammar", "\n".join([f"start: {name}0", *rules, f'{name}{length}: "x"']))


def schema_chain(length: int) -> Guide:
    definitions: dict[str, Any] = {
        f"a{i}": {"items": {"$ref": f"#/$defs/a{i + 1}"}, "type": "array"} for i in range(length)
    }
    definitions[f"a{length}"] = {"type": "null"}
    return Guide("json_schema", json.dumps({"$ref": "#/$defs/a0", "$defs": definitions}))


DEADLY = {
    "deep rules": chain("a", 30_000, 1),
    "deep terminals": chain("A", 30_000, 1),
    "deep definitions": schema_chain(20_000),
    "much memory": Guide("regex", "(a*)*" * 15_000),
    "exponential time": chain("A", 3000, 2),
}


async def running_process(store: GrammarStore) -> Process:
    """The process that tries guides, with nothing to do."""
    await store.get(GOOD)
    process = store._trial._process
    assert process is not None
    return process


def run(test: Callable[[GrammarStore], Awaitable[None]]) -> None:
    """Runs a test with a store; nothing of it may be left, which warnings would tell."""

    async def whole() -> None:
        store = GrammarStore(demo_model().tokenizer.to_json, demo_model().eos_token_ids)
        store.prepare(LIMITS.vocab_size)
        try:
            await asyncio.wait_for(test(store), 60)
        finally:
            await store.close()

    asyncio.run(whole())


@pytest.mark.parametrize("name", DEADLY)
def test_a_guide_that_takes_too_much_is_refused_and_the_next_one_served(name: str):
    async def test(store: GrammarStore) -> None:
        with pytest.raises(GrammarError, match=r"takes too (much|long) to compile"):
            await store.get(DEADLY[name])
        assert (await store.get(GOOD)).bits

    run(test)


def test_what_is_wrong_with_a_guide_is_told_as_it_is_without_a_trial():
    async def test(store: GrammarStore) -> None:
        with pytest.raises(GrammarError, match="invalid regex"):
            await store.get(Guide("regex", "(a"))
        with pytest.raises(GrammarError, match="no text can match"):
            await store.get(Guide("regex", "[a&&b]"))

    run(test)


def test_a_deadly_guide_is_tried_once(monkeypatch: pytest.MonkeyPatch):
    deadly, num_deaths = chain("a", 30_000, 1), 0
    bury = GrammarTrial._bury

    async def counted(*arguments: Any) -> str:
        nonlocal num_deaths
        num_deaths += 1
        return await bury(*arguments)

    monkeypatch.setattr(GrammarTrial, "_bury", counted)

    async def test(store: GrammarStore) -> None:
        for _ in range(2):
            outcomes = await asyncio.gather(
                *(store.get(guide) for guide in (deadly, GOOD) * 3), return_exceptions=True
            )
            assert [isinstance(outcome, GrammarError) for outcome in outcomes] == [True, False] * 3

    run(test)
    assert num_deaths == 1


def test_a_process_that_is_killed_is_started_again():
    async def test(store: GrammarStore) -> None:
        process = await running_process(store)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        assert (await store.get(Guide("regex", "another"))).bits

    run(test)


def test_who_gives_up_waiting_spoils_nothing_for_others():
    async def test(store: GrammarStore) -> None:
        waiting = [asyncio.ensure_future(store.get(Guide("regex", f"x{i % 4}(a"))) for i in range(12)]
        await asyncio.sleep(0.01)
        for task in waiting[::2]:
            task.cancel()
        for index, outcome in enumerate(await asyncio.gather(*waiting, return_exceptions=True)):
            assert isinstance(outcome, GrammarError if index % 2 else asyncio.CancelledError)
        assert (await store.get(GOOD)).bits

    run(test)


@pytest.mark.parametrize(("work", "status"), [("time.sleep(end)", 0), ("spin(end)", -signal.SIGPROF)])
def test_a_guide_is_not_to_blame_for_a_process_that_is_held_up(work: str, status: int):
    script = f"""
import time
from scheduler_svc import grammar_child

end = 1.2 * grammar_child.MAX_SECONDS

def spin(seconds):
    while time.process_time() < seconds + 1:
        pass

class Compiler:
    def build(self, guide):
        {work}

grammar_child._try(Compiler(), None)
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == status


def test_a_guide_is_not_to_blame_for_a_process_that_is_killed():
    async def test(store: GrammarStore) -> None:
        process = await running_process(store)
        process.send_signal(signal.SIGSTOP)
        trial = asyncio.ensure_future(store.get(Guide("regex", "another")))
        await asyncio.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        assert (await trial).bits
        assert store._trial._process is not process

    run(test)
