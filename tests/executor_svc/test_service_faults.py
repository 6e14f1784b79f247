"""Clients that hang, leave at the worst moment or say nothing; steps that never end; bugs of the executor itself."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from session_client import IDENTITY, TIMEOUT_SECONDS, Gate, Stream, first_plan, serving, wait_until

from executor_svc import service
from executor_svc.service import ExecutorServer, ExecutorService
from executor_svc.session import Session
from executor_svc.session_manager import SessionManager
from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve.executor.v1.executor_pb2_grpc import ExecutorServiceStub

# More than the server has threads.
MANY = 40


def describe(channel: grpc.Channel) -> pb.DescribeResponse:
    return ExecutorServiceStub(channel).Describe(pb.DescribeRequest(), timeout=TIMEOUT_SECONDS)


def is_serving(channel: grpc.Channel) -> bool:
    check = health_pb2_grpc.HealthStub(channel).Check
    answer = check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def session_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("session-")]


@contextmanager
def hung_step(gate: Gate) -> Iterator[grpc.Channel]:
    """A server whose first session is in a step that does not end before the block does."""
    with serving(gate.runner()) as channel:
        stream = Stream(channel).open("a", 0)
        stream.opened()
        stream.plan(first_plan())
        assert gate.entered.get(timeout=TIMEOUT_SECONDS) == 1
        try:
            yield channel
        finally:
            gate.let_through(1)
            stream.call.cancel()
            stream.close()


def reconnect_and_leave(channel: grpc.Channel) -> None:
    """Opens a session, and leaves once it is claimed; or is refused, where those before have not left yet."""
    epoch = describe(channel).epoch
    stream = Stream(channel).open("a", epoch)
    wait_until(lambda: describe(channel).epoch > epoch or stream.call.done())
    stream.call.cancel()
    stream.close()


def test_reconnecting_over_a_hung_step_leaves_describe_and_health_a_thread() -> None:
    gate = Gate(1)
    with hung_step(gate) as channel:
        while describe(channel).epoch < MANY:
            reconnect_and_leave(channel)
        assert is_serving(channel)
        assert gate.history == ["reset"]
        # Once the step is over, whoever waits then is let in.
        last = Stream(channel).open("a", MANY)
        wait_until(lambda: describe(channel).epoch == MANY + 1)
        gate.let_through(1)
        assert last.opened().epoch == MANY + 1
        last.rest()
    wait_until(lambda: not session_threads())


def test_streams_that_say_nothing_leave_describe_and_health_a_thread() -> None:
    with serving() as channel:
        assert describe(channel).epoch == 0  # connected: calls arrive in order from now on
        silent = [Stream(channel) for _ in range(MANY)]
        assert describe(channel).epoch == 0
        assert is_serving(channel)
        for stream in silent:
            stream.call.cancel()
            stream.close()
    wait_until(lambda: not session_threads())


def test_streams_beyond_those_that_may_wait_are_refused_and_silent_ones_make_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service, "_OPENING_SECONDS", 0.3)
    with serving() as channel:
        assert describe(channel).epoch == 0
        silent = [Stream(channel) for _ in range(MANY)]
        ends = [stream.end() for stream in silent]
        codes = [code for code, _ in ends]
        assert set(codes) == {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED}
        assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == MANY - service._MAX_STREAMS
        assert all("open" in details for code, details in ends if code is grpc.StatusCode.DEADLINE_EXCEEDED)
        stream = Stream(channel).open("a", 0)
        assert stream.opened().epoch == 1
        stream.rest()
    wait_until(lambda: not session_threads())


def test_a_stream_that_was_over_before_its_session_was_claimed_does_not_wait_for_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, over = Gate(1), threading.Event()
    open_, claim = ExecutorService._open, SessionManager.claim

    def watched_open(self: ExecutorService, requests: Any, context: grpc.ServicerContext) -> Session:
        assert context.add_callback(over.set)
        return open_(self, requests, context)

    def claim_too_late(self: SessionManager, opening: pb.OpenSession) -> Session:
        late.call.cancel()
        assert over.wait(TIMEOUT_SECONDS)
        return claim(self, opening)

    with hung_step(gate) as channel:
        monkeypatch.setattr(ExecutorService, "_open", watched_open)
        monkeypatch.setattr(SessionManager, "claim", claim_too_late)
        late = Stream(channel).open("a", 1)
        wait_until(lambda: describe(channel).epoch == 2)
        wait_until(lambda: not describe(channel).session_alive)
        assert gate.history == ["reset"]
        late.close()


def test_a_bug_of_the_reading_thread_ends_the_stream_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(Session, "submit", crash)
    with serving() as channel:
        stream = Stream(channel).open("a", 0)
        stream.opened()
        stream.plan(first_plan())
        code, details = stream.end()
        assert code is grpc.StatusCode.INTERNAL
        assert "secret" not in details
        assert not describe(channel).session_alive


def test_stopping_gives_up_on_a_step_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_DRAIN_SECONDS", 0.2)
    gate = Gate(1)
    server = ExecutorServer("127.0.0.1:0")
    server.start(gate.runner(), IDENTITY)
    with grpc.insecure_channel(server.address) as channel:
        stream = Stream(channel).open("a", 0)
        stream.opened()
        stream.plan(first_plan())
        assert gate.entered.get(timeout=TIMEOUT_SECONDS) == 1
        assert not server.stop(0.1)
        gate.let_through(1)
        stream.close()
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "executor-stop"])


def test_stopping_waits_for_a_step_that_outlasts_the_grace() -> None:
    gate = Gate(1)
    server = ExecutorServer("127.0.0.1:0")
    server.start(gate.runner(), IDENTITY)
    with grpc.insecure_channel(server.address) as channel:
        stream = Stream(channel).open("a", 0)
        stream.opened()
        stream.plan(first_plan())
        assert gate.entered.get(timeout=TIMEOUT_SECONDS) == 1
        threading.Timer(0.2, gate.let_through, (1,)).start()
        assert server.stop(0)
        assert gate.history == ["reset", 1]
        stream.close()


def test_the_command_ends_with_a_line_and_status_1_where_a_step_does_not_end() -> None:
    # A step of the virtual executor lasts for days.
    code = (
        "import sys, executor_svc.process as main, executor_svc.service as service\n"
        "main._STOP_GRACE_SECONDS = service._DRAIN_SECONDS = 0.1\n"
        "sys.exit(main.main(['--virtual', '--listen', '127.0.0.1:0', '--virtual-step-ms', '1e9']))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            lines = (json.loads(line) for line in process.stderr)
            listening = next(line for line in lines if line["event"] == "listening")
            with grpc.insecure_channel(listening["address"]) as channel:
                stream = Stream(channel).open("a", 0)
                stream.opened()
                stream.plan(first_plan())
                wait_until(lambda: describe(channel).session_alive)
                time.sleep(0.1)
                process.terminate()
                stream.end()
            rest = list(lines)
            assert process.wait(TIMEOUT_SECONDS) == 1
            assert rest[-1]["event"] == "stop_failed"
        finally:
            process.kill()


def test_the_command_ends_with_status_1_soon_after_its_device_is_lost() -> None:
    code = (
        "import sys, threading, executor_svc.process as main\n"
        "from executor_svc.virtual.runner import VirtualRunner\n"
        "launch = VirtualRunner.launch\n"
        "VirtualRunner.launch = lambda self, step: (self.fatal.set(), launch(self, step))[1]\n"
        "sys.exit(main.main(['--virtual', '--listen', '127.0.0.1:0']))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            lines = (json.loads(line) for line in process.stderr)
            listening = next(line for line in lines if line["event"] == "listening")
            with grpc.insecure_channel(listening["address"]) as channel:
                stream = Stream(channel).open("a", 0)
                stream.opened()
                time.sleep(0.5)
                assert process.poll() is None
                stream.plan(first_plan())
                assert stream.result().step_id == 1
                stream.end()
            assert any(line["event"] == "stopping" and line["device_lost"] for line in lines)
            assert process.wait(TIMEOUT_SECONDS) == 1
        finally:
            process.kill()
