import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import pytest
from executor_plans import TINY, encode_plan, ints, make_plan
from session_client import TIMEOUT_SECONDS, Gate, first_plan
from structlog.testing import capture_logs

from executor_svc import session_manager, wire
from executor_svc.plan import ErrorCode, Step, StepFailure, StepPlan
from executor_svc.row_table import RowTable
from executor_svc.runner import PendingStep
from executor_svc.session import ExecutorStopping, OpenRefused, Session, SessionReplaced
from executor_svc.session_manager import SessionManager
from executor_svc.virtual import InstantClock, RunnerHooks, VirtualRunner
from nanoserve.executor.v1 import executor_pb2 as pb


def opening(scheduler_id: str, epoch: int, *, take_over: bool = False) -> pb.OpenSession:
    return pb.OpenSession(scheduler_id=scheduler_id, expected_epoch=epoch, take_over=take_over)


def opened(manager: SessionManager, scheduler_id: str = "a", epoch: int = 0) -> Session:
    session = manager.claim(opening(scheduler_id, epoch))
    manager.prepare(session)
    return session


def submit(session: Session, *plans: StepPlan) -> None:
    for plan in plans:
        session.submit(encode_plan(plan), arrived_ns=0)


def decode(step_id: int) -> StepPlan:
    return make_plan(step_id, decode_rows=ints(0))


def drain_gate(gate: Gate) -> list[int]:
    launched = []
    while not gate.launched.empty():
        launched.append(gate.launched.get())
    return launched


def test_a_plan_beyond_those_agreed_fails_and_room_is_made_by_the_last_result_of_a_plan() -> None:
    gate = Gate()
    session = opened(SessionManager(gate.runner()))
    submit(session, first_plan(), decode(2), decode(3), make_plan(4, decode_rows=ints(0), num_decode_steps=2))
    results = session.results()
    assert next(results).step_id == 1
    submit(session, decode(5))
    for step_id, sub_step in ((2, 0), (3, 0), (4, 0)):
        result = next(results)
        assert (result.step_id, result.sub_step) == (step_id, sub_step)
    # Plan 4 has a result to come, so 4 to 7 are in flight: 8 is one too many, and 9 comes after it.
    submit(session, *(decode(step_id) for step_id in (6, 7, 8, 9)))
    session.finish()
    rest = list(results)
    assert [result.step_id for result in rest] == [4, 5, 6, 7, 8, 9]
    assert [result.status for result in rest] == [pb.STEP_STATUS_OK] * 4 + [
        pb.STEP_STATUS_FAILED,
        pb.STEP_STATUS_SKIPPED,
    ]
    assert "in flight" in rest[4].error.description
    assert drain_gate(gate) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("failing_sub_step", range(4))
@pytest.mark.parametrize("num_later_plans", range(3))
def test_a_plan_that_fails_before_its_last_sub_step_is_over_and_later_ones_are_skipped_once(
    failing_sub_step: int, num_later_plans: int
) -> None:
    waits: list[int] = []

    def fail(step_id: int) -> None:
        waits.append(step_id)
        if waits.count(2) == failing_sub_step + 1:
            raise StepFailure(ErrorCode.INTERNAL, "broken")

    session = opened(SessionManager(VirtualRunner(TINY, clock=InstantClock(), hooks=RunnerHooks(None, fail))))
    later = range(3, 3 + num_later_plans)
    several = make_plan(2, decode_rows=ints(0), num_decode_steps=4)
    submit(session, first_plan(), several, *(decode(step_id) for step_id in later))
    session.finish()
    assert [
        (result.step_id, result.sub_step, result.last, result.status) for result in session.results()
    ] == [
        (1, 0, True, pb.STEP_STATUS_OK),
        *((2, sub_step, False, pb.STEP_STATUS_OK) for sub_step in range(failing_sub_step)),
        (2, failing_sub_step, True, pb.STEP_STATUS_FAILED),
        *((step_id, 0, True, pb.STEP_STATUS_SKIPPED) for step_id in later),
    ]
    session.end()
    session.drain()


@pytest.mark.parametrize("broken", [(wire, "decode_plan"), (RowTable, "apply")])
def test_a_crash_in_the_reading_of_a_plan_fails_it_as_a_bug_of_the_executor(
    broken: tuple[object, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise ZeroDivisionError("secret")

    gate = Gate()
    session = opened(SessionManager(gate.runner()))
    submit(session, first_plan())
    monkeypatch.setattr(*broken, crash)
    with capture_logs() as lines:
        submit(session, decode(2), decode(3))
    session.finish()
    first, second, third = session.results()
    assert first.status == pb.STEP_STATUS_OK
    assert (second.step_id, second.error.code) == (2, pb.STEP_ERROR_CODE_INTERNAL)
    assert "secret" not in second.error.description
    assert (third.step_id, third.status) == (3, pb.STEP_STATUS_SKIPPED)
    assert drain_gate(gate) == [1]
    assert [type(line["exc_info"]) for line in lines if line["event"] == "step_crashed"] == [
        ZeroDivisionError
    ]


def test_a_malformed_plan_fails_with_its_field_and_nothing_after_it_is_launched() -> None:
    gate = Gate()
    session = opened(SessionManager(gate.runner()))
    submit(session, first_plan())
    session.submit(pb.StepPlan(step_id=2, decode_rows=b"123"), arrived_ns=0)
    submit(session, decode(3))
    session.finish()
    first, second, third = session.results()
    assert first.status == pb.STEP_STATUS_OK
    assert (second.error.code, second.error.field) == (pb.STEP_ERROR_CODE_INVALID_ARGUMENT, "decode_rows")
    assert (third.step_id, third.status, third.HasField("error")) == (3, pb.STEP_STATUS_SKIPPED, False)
    assert drain_gate(gate) == [1]


def test_a_session_that_ended_launches_nothing_more_and_answers_nothing() -> None:
    gate = Gate()
    session = opened(SessionManager(gate.runner()))
    submit(session, first_plan())
    session.end()
    submit(session, decode(2))
    assert list(session.results()) == []
    session.drain()
    assert drain_gate(gate) == [1]
    assert gate.history == ["reset", 1]


def test_draining_takes_over_from_an_answering_thread_that_stopped_between_two_sub_steps() -> None:
    gate = Gate()
    session = opened(SessionManager(gate.runner()))
    submit(session, first_plan(), make_plan(2, decode_rows=ints(0), num_decode_steps=3), decode(3))
    results = session.results()
    assert [next(results).step_id for _ in range(2)] == [1, 2]
    session.end()
    session.drain()
    session.drain()
    assert gate.history == ["reset", 1, 2, 2, 2, 3]
    assert list(results) == []


def test_draining_waits_for_the_answering_threads_own_wait() -> None:
    gate = Gate(1)
    session = opened(SessionManager(gate.runner()))
    submit(session, first_plan(), decode(2))
    with ThreadPoolExecutor(2) as threads:
        answers = threads.submit(lambda results: list(results), session.results())
        assert gate.entered.get(timeout=TIMEOUT_SECONDS) == 1
        session.end()
        drained = threads.submit(session.drain)
        gate.let_through(1)
        drained.result(TIMEOUT_SECONDS)
        assert gate.history == ["reset", 1, 2]
        # The result of step 1 was on its way when the session ended; no more follows.
        assert [result.step_id for result in answers.result(TIMEOUT_SECONDS)] in ([], [1])


def test_draining_waits_for_a_launch_under_way() -> None:
    gate, launching, may_launch = Gate(), threading.Event(), threading.Event()
    runner = gate.runner()
    launch = runner.launch

    def slow_launch(step: Step) -> PendingStep:
        launching.set()
        assert may_launch.wait(TIMEOUT_SECONDS)
        return launch(step)

    runner.launch = slow_launch
    session = opened(SessionManager(runner))
    with ThreadPoolExecutor(2) as threads:
        submitted = threads.submit(submit, session, first_plan())
        assert launching.wait(TIMEOUT_SECONDS)
        session.end()
        drained = threads.submit(session.drain)
        may_launch.set()
        submitted.result(TIMEOUT_SECONDS)
        drained.result(TIMEOUT_SECONDS)
    assert gate.history == ["reset", 1]


def test_closing_waits_for_what_was_launched() -> None:
    gate = Gate()
    manager = SessionManager(gate.runner())
    submit(opened(manager), first_plan())
    manager.close()
    assert gate.history == ["reset", 1]


def test_draining_gets_past_steps_that_fail_and_runners_that_crash() -> None:
    class Crashing:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def wait(self, sub_step: int) -> None:
            raise self.error

    errors: Iterator[Exception] = iter([StepFailure(ErrorCode.INTERNAL, "x"), ZeroDivisionError()])
    gate = Gate()
    runner = gate.runner()
    runner.launch = lambda step: Crashing(next(errors))
    manager = SessionManager(runner)
    submit(opened(manager), first_plan(), decode(2))
    opened(manager, "a", 1)
    assert gate.history == ["reset", "reset"]


def test_a_session_replaced_before_it_was_prepared_never_touches_the_device() -> None:
    gate = Gate()
    manager = SessionManager(gate.runner())
    first = opened(manager)
    submit(first, first_plan())
    second = manager.claim(opening("b", 1, take_over=True))
    third = manager.claim(opening("c", 2, take_over=True))
    manager.prepare(third)
    submit(third, first_plan(), decode(2))
    manager.prepare(second)
    third.finish()
    assert [result.status for result in third.results()] == [pb.STEP_STATUS_OK] * 2
    assert gate.history == ["reset", 1, "reset", 1, 2]
    for session, successor in ((first, "b"), (second, "c")):
        with pytest.raises(SessionReplaced, match=f"'{successor}'"):
            list(session.results())


def test_a_session_that_ends_while_it_waits_for_the_device_waits_no_longer() -> None:
    gate = Gate(1)
    manager = SessionManager(gate.runner())
    submit(opened(manager), first_plan())
    with ThreadPoolExecutor(3) as threads:
        left = [manager.claim(opening("a", 1)), manager.claim(opening("a", 2))]
        prepared = [threads.submit(manager.prepare, session) for session in left]
        assert gate.entered.get(timeout=TIMEOUT_SECONDS) == 1
        left[1].end()
        for future in prepared:
            future.result(TIMEOUT_SECONDS)
        assert gate.history == ["reset"]
        last = threads.submit(opened, manager, "a", 3)
        gate.let_through(1)
        submit(last.result(TIMEOUT_SECONDS), first_plan(), decode(2))
    assert gate.history == ["reset", 1, "reset"]


def test_a_session_replaced_while_another_holds_the_device_leaves_it_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_manager, "_WAIT_SLICE_SECONDS", TIMEOUT_SECONDS)
    gate, may_reset = Gate(), threading.Event()
    runner = gate.runner()
    resetting: SimpleQueue[None] = SimpleQueue()
    reset = runner.reset

    def slow_reset() -> None:
        resetting.put(None)
        assert may_reset.wait(TIMEOUT_SECONDS)
        reset()

    runner.reset = slow_reset
    manager = SessionManager(runner)
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(opened, manager)
        resetting.get(timeout=TIMEOUT_SECONDS)
        second = manager.claim(opening("a", 1))
        prepared = threads.submit(manager.prepare, second)
        time.sleep(0.05)  # it waits for the device by now
        third = manager.claim(opening("a", 2))
        may_reset.set()
        first.result(TIMEOUT_SECONDS)
        prepared.result(TIMEOUT_SECONDS)
        assert gate.history == ["reset"]
        manager.prepare(third)
        submit(third, first_plan())
        assert next(third.results()).status == pb.STEP_STATUS_OK


def test_an_epoch_is_good_for_one_opening() -> None:
    manager = SessionManager(Gate().runner())
    assert manager.state() == (0, False)
    first = manager.claim(opening("a", 0))
    assert manager.state() == (1, True)
    with pytest.raises(OpenRefused, match="expected_epoch"):
        manager.claim(opening("a", 0, take_over=True))
    with pytest.raises(OpenRefused, match="'a'"):
        manager.claim(opening("b", 1))
    assert first.alive
    first.end()
    assert manager.state() == (1, False)
    assert manager.claim(opening("b", 1)).epoch == 2


def test_stopping_answers_what_was_taken_and_refuses_new_sessions() -> None:
    gate = Gate()
    manager = SessionManager(gate.runner())
    session = opened(manager)
    submit(session, first_plan())
    manager.stop()
    submit(session, decode(2))
    results = session.results()
    assert next(results).status == pb.STEP_STATUS_OK
    with pytest.raises(ExecutorStopping):
        next(results)
    with pytest.raises(ExecutorStopping):
        manager.claim(opening("a", 1))
    manager.close()
    assert gate.history == ["reset", 1]


def test_the_times_of_a_plan_are_told_once() -> None:
    session = opened(SessionManager(Gate().runner()))
    submit(session, first_plan(), make_plan(2, decode_rows=ints(0), num_decode_steps=2))
    session.finish()
    timings = [result.timing for result in session.results()]
    assert [timing.host_ns > 0 for timing in timings] == [True, True, False]
    assert [timing.queue_ns > 0 for timing in timings] == [True, True, False]
