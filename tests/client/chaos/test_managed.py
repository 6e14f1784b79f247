"""Processes under test: started again, their ends told apart, nothing left behind."""

import asyncio
import os
import sys

import pytest

from nanoserve_client.chaos import managed as managed_module
from nanoserve_client.chaos.managed import ManagedProcess
from nanoserve_client.chaos.process_table import descendants, is_running, largest, use_of

SLEEP = "import time; time.sleep(600)"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{SLEEP}']).wait()"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def managed(code: str) -> ManagedProcess:
    return ManagedProcess("sleeper", [sys.executable, "-c", code], lambda name, line: None)


async def child_of(process: ManagedProcess) -> int:
    for _ in range(2000):
        if found := descendants(process.pid):
            return found[0]
        await asyncio.sleep(0.01)
    raise AssertionError("it starts no child")


async def restarted(process: ManagedProcess, num_starts: int) -> None:
    for _ in range(2000):
        if process.num_starts >= num_starts:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it is not started again")


def test_an_end_that_was_seen_to_is_no_problem_and_another_is():
    async def run() -> None:
        process = managed(SLEEP)
        await process.start()
        first = process.pid
        process.kill(first)
        assert await process.wait_end(0) == -9
        await restarted(process, 2)
        assert process.problems == []
        os.kill(process.pid, 9)
        await process.wait_end(1)
        await restarted(process, 3)
        assert len(process.problems) == 1
        assert await process.stop(10) == -15
        assert not is_running(first)
        assert not is_running(process.pid)

    asyncio.run(run())


def test_a_process_that_outlives_its_parent_is_found_and_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(managed_module, "_ORPHAN_SECONDS", 0.5)

    async def run() -> None:
        process = managed(PARENT)
        await process.start()
        child = await child_of(process)
        await process.stop(10)
        assert any(str(child) in problem for problem in process.problems)
        await asyncio.sleep(0.1)
        assert not is_running(child)

    asyncio.run(run())


def test_a_family_is_ended_as_a_whole_where_it_must_be_at_once():
    async def run() -> None:
        process = managed(PARENT)
        await process.start()
        child = await child_of(process)
        assert process.family == [process.pid, child]
        process.destroy()
        for _ in range(1000):
            if not is_running(child) and not is_running(process.pid):
                break
            await asyncio.sleep(0.01)
        assert not is_running(child)
        assert not is_running(process.pid)
        await process.wait_end(0)

    asyncio.run(run())


def test_what_this_process_holds_is_read_from_the_system():
    use = use_of([os.getpid()])
    assert use.rss_bytes > 10 * 2**20
    with open(os.devnull, "rb"):
        assert use_of([os.getpid()]).num_descriptors == use.num_descriptors + 1
    assert use.num_threads >= 1
    assert use_of([2**22 + 1]).rss_bytes == 0
    assert largest([os.getpid(), 2**22 + 1]) == os.getpid()
