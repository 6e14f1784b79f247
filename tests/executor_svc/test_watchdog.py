"""The executor's parent: it ends an executor that hangs, soon and no other, and is otherwise not to be noticed."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import grpc
import numpy as np
import pytest
from executor_plans import TINY, make_plan
from session_client import Stream, first_plan

from executor_svc.plan import ErrorCode, Step, StepFailure
from executor_svc.progress import Page, Reading, make_file
from executor_svc.row_table import RowTable
from executor_svc.virtual import InstantClock, RunnerHooks, VirtualRunner
from executor_svc.watchdog import Judge
from executor_svc.watched_runner import WatchedRunner
from nanoserve.step_limits import TICK_SECONDS

# An executor whose parent is not patient.
IMPATIENT = """
import sys, executor_svc.watchdog as watchdog
watchdog._SILENCE_SECONDS = 3.0
child = "import sys, nanoserve.step_limits as limits; limits._MIN_SECONDS = 2.0;" \\
    "from executor_svc.process import main; sys.exit(main(sys.argv[1:]))"
sys.exit(watchdog.watch([sys.executable, "-c", child, *sys.argv[1:]]))
"""
_WAIT_SECONDS = 30


class Running:
    """An executor's parent, and what it and its child log."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        assert process.stderr is not None
        self._lines = (json.loads(line) for line in process.stderr)

    def event(self, name: str) -> dict[str, Any]:
        """The next log line of that event."""
        return next(line for line in self._lines if line["event"] == name)

    def status(self) -> int:
        return self.process.wait(_WAIT_SECONDS)


@contextmanager
def executor(*flags: str) -> Iterator[Running]:
    command = [sys.executable, "-c", IMPATIENT, "--virtual", "--listen=127.0.0.1:0", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield Running(process)
        finally:
            process.kill()


def judge(*readings: Reading, ticks: int = 1) -> list[str | None]:
    judge = Judge()
    return [judge.tick(reading, TICK_SECONDS) for reading in readings for _ in range(ticks)]


def test_a_step_is_given_its_limit_and_no_more():
    verdicts = judge(Reading(1, 5, 4, 10.0), ticks=22)
    assert verdicts.index("a step has not finished within 10 s") == 10 / TICK_SECONDS


def test_each_step_that_ends_gives_the_next_its_whole_time():
    readings = [Reading(beat, beat + 2, beat, 1.0) for beat in range(1, 50)]
    assert judge(*readings, ticks=2) == [None] * 98


def test_an_idle_executor_is_left_alone_as_long_as_it_beats():
    assert judge(*(Reading(1 + beat, 7, 7, 0.0) for beat in range(300))) == [None] * 300
    assert judge(Reading(0, 0, 0, 0.0), ticks=300) == [None] * 300, "it still starts"
    assert judge(Reading(3, 7, 7, 0.0), ticks=130)[-1] == "no sign of life for 60 s"


@pytest.mark.parametrize("failing_sub_step", [None, 0, 1])
def test_a_watched_runner_tells_of_what_is_under_way_however_it_ends(failing_sub_step: int | None):
    waited: list[int] = []

    def before_result(step_id: int) -> None:
        waited.append(step_id)
        if step_id == 2 and waited.count(2) - 1 == failing_sub_step:
            raise StepFailure(ErrorCode.INTERNAL, "as the test wants it")

    page = Page(make_file())
    inner = VirtualRunner(TINY, clock=InstantClock(), hooks=RunnerHooks(before_result=before_result))
    runner, table = WatchedRunner(inner, page), RowTable(TINY)
    first = runner.launch(table.apply(first_plan()))
    rows = first_plan().starts[0].row
    second = runner.launch(
        table.apply(make_plan(2, decode_rows=np.array([rows], np.int32), num_decode_steps=2))
    )
    assert page.read()[1:3] == (2, 0)
    assert page.read().limit_seconds >= 10.0
    first.wait(0)
    assert page.read()[1:3] == (2, 1)
    for sub_step in range(2):
        if sub_step == failing_sub_step:
            with pytest.raises(StepFailure):
                second.wait(sub_step)
            break
        assert page.read()[1:3] == (2, 1)
        second.wait(sub_step)
    # The limit may be read beside counts of a moment before: without a step under way there is none.
    assert page.read()[1:] == (2, 2, math.inf)


def test_a_step_that_cannot_be_launched_leaves_those_under_way_their_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(step: Step) -> NoReturn:
        raise StepFailure(ErrorCode.INTERNAL, "as the test wants it")

    page, table = Page(make_file()), RowTable(TINY)
    inner = VirtualRunner(TINY, clock=InstantClock())
    runner = WatchedRunner(inner, page)
    runner._step_limits.observe(9, 100.0)
    runner._step_limits.observe(1, 1.0)
    first = runner.launch(table.apply(first_plan()))
    limit = page.read().limit_seconds
    monkeypatch.setattr(inner, "launch", refuse)
    with pytest.raises(StepFailure):
        runner.launch(table.apply(make_plan(2, decode_rows=np.array([0], np.int32))))
    assert page.read()[1:] == (2, 1, limit)
    assert runner._step_limits.limit(1) == 20.0, "it tells of no step's time"
    first.wait(0)
    assert page.read()[1:] == (2, 2, math.inf)


def test_an_executor_whose_step_hangs_is_ended_with_status_1() -> None:
    with executor("--virtual-step-ms=1e9") as running:
        address = running.event("listening")["address"]
        with grpc.insecure_channel(address) as channel:
            stream = Stream(channel).open("a", 0)
            stream.opened()
            stream.plan(first_plan())
            assert running.event("hung")["reason"] == "a step has not finished within 2 s"
            assert running.status() == 1
            stream.end()


def test_an_executor_that_is_stopped_is_ended_with_status_1_though_it_has_nothing_to_do() -> None:
    with executor() as running:
        os.kill(running.event("listening")["pid"], signal.SIGSTOP)
        assert running.event("hung")["reason"] == "no sign of life for 3 s"
        assert running.status() == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on(number: signal.Signals) -> None:
    with executor() as running:
        running.event("listening")
        running.process.send_signal(number)
        running.event("stopping")
        assert running.status() == 0


def test_the_parents_status_tells_what_killed_the_executor() -> None:
    with executor() as running:
        os.kill(running.event("listening")["pid"], signal.SIGKILL)
        assert running.status() == 128 + signal.SIGKILL


def test_the_executor_does_not_outlive_its_parent() -> None:
    with executor() as running:
        child = running.event("listening")["pid"]
        running.process.kill()
        running.status()
        deadline = time.monotonic() + _WAIT_SECONDS
        while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_parent_imports_next_to_nothing() -> None:
    code = (
        "import sys, executor_svc.__main__, executor_svc.watchdog\n"
        "assert not {'torch', 'numpy', 'grpc', 'structlog'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
