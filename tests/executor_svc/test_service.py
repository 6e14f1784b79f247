import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from executor_plans import TINY, ints, make_plan
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from session_client import IDENTITY, TIMEOUT_SECONDS, Gate, Stream, first_plan, serving, wait_until

from executor_svc.plan import ErrorCode, StepFailure
from executor_svc.service import SERVICE_NAME, ExecutorServer
from executor_svc.virtual import InstantClock, RunnerHooks, VirtualRunner, virtual_token
from nanoserve.arrays import unpack_int32
from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve.executor.v1.executor_pb2_grpc import ExecutorServiceStub


def describe(channel: grpc.Channel) -> pb.DescribeResponse:
    return ExecutorServiceStub(channel).Describe(pb.DescribeRequest(), timeout=TIMEOUT_SECONDS)


def decode(step_id: int, num_decode_steps: int = 1) -> pb.StepPlan:
    return make_plan(step_id, decode_rows=ints(0), num_decode_steps=num_decode_steps)


@pytest.mark.parametrize("method", ["Describe", "Execute", "StartProfile", "StopProfile"])
def test_bytes_that_are_no_message_end_a_call_as_an_invalid_argument(method: str) -> None:
    with serving() as channel:
        call = channel.stream_stream(f"/{SERVICE_NAME}/{method}")
        assert call(iter([b"\xff\xff"]), timeout=TIMEOUT_SECONDS).code() is grpc.StatusCode.INVALID_ARGUMENT
        assert describe(channel).epoch == 0


def test_bytes_that_are_no_plan_end_the_session_as_an_invalid_argument() -> None:
    with serving() as channel:
        opening = pb.ExecuteRequest(open=pb.OpenSession(scheduler_id="a"))
        messages = [opening.SerializeToString(), b"\xff\xff"]
        call = channel.stream_stream(f"/{SERVICE_NAME}/Execute")(iter(messages), timeout=TIMEOUT_SECONDS)
        with pytest.raises(grpc.RpcError, match="plan: must be set"):
            list(call)
        assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
        Stream(channel).open("b", 1).opened()


def expect_invalid_message(channel: grpc.Channel, stream: Stream, word: str) -> None:
    code, details = stream.end()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert word in details


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "unix:{}/executor.sock"])
def test_a_session_runs_plans_on_both_kinds_of_socket(listen: str, tmp_path: Path) -> None:
    with serving(listen=listen.format(tmp_path)) as channel:
        before = describe(channel)
        assert (before.epoch, before.session_alive) == (0, False)
        stream = Stream(channel).open("a", 0)
        opened = stream.opened()
        assert opened.epoch == 1
        assert opened.description == before.description
        during = describe(channel)
        assert (during.epoch, during.session_alive) == (1, True)
        stream.plan(first_plan(), decode(2, num_decode_steps=3))
        results = stream.rest()
        assert [(result.step_id, result.sub_step, result.last) for result in results] == [
            (1, 0, True),
            (2, 0, False),
            (2, 1, False),
            (2, 2, True),
        ]
        tokens = [unpack_int32(result.token_ids).tolist() for result in results]
        assert tokens == [[virtual_token(0, position, TINY.vocab_size)] for position in range(9, 13)]
        assert results[0].timing.host_ns > 0
        assert results[0].timing.queue_ns > 0
        assert not describe(channel).session_alive


def test_the_description_is_the_runners() -> None:
    with serving() as channel:
        description = describe(channel).description
    assert (description.num_blocks, description.block_size, description.vocab_size) == (24, 4, 50)
    assert (description.max_num_seqs, description.max_model_len) == (6, 30)
    assert (description.max_num_batched_tokens, description.max_num_decode_steps) == (40, 4)
    assert (description.max_plans_in_flight, description.device, description.dtype) == (4, "virtual", "")
    assert (description.instance_id, description.model_fingerprint) == ("instance", "model")
    assert (description.weights_fingerprint, description.version) == ("weights", "0.0")


def test_plans_are_launched_while_an_earlier_step_is_held_open() -> None:
    gate = Gate(1)
    with serving(gate.runner()) as channel:
        stream = Stream(channel).open("a", 0)
        stream.opened()
        stream.plan(first_plan(), decode(2), decode(3))
        # Step 1 is running and its result not written; 2 and 3 are validated and on the device.
        assert gate.entered.get(timeout=TIMEOUT_SECONDS) == 1
        assert [gate.launched.get(timeout=TIMEOUT_SECONDS) for _ in range(3)] == [1, 2, 3]
        assert gate.entered.empty()
        assert describe(channel).session_alive
        gate.let_through(1)
        assert [result.step_id for result in stream.rest()] == [1, 2, 3]


def test_a_plan_is_refused_while_an_earlier_step_is_held_open_and_the_earlier_one_stands() -> None:
    gate = Gate(1)
    with serving(gate.runner()) as channel:
        stream = Stream(channel).open("a", 0)
        stream.opened()
        stream.plan(first_plan(), make_plan(2, decode_rows=ints(5)), decode(3))
        stream.close()
        assert gate.launched.get(timeout=TIMEOUT_SECONDS) == 1
        gate.let_through(1)
        first, second, third = stream.rest()
        assert (first.step_id, first.status) == (1, pb.STEP_STATUS_OK)
        assert (second.step_id, second.status) == (2, pb.STEP_STATUS_FAILED)
        assert second.error.code == pb.STEP_ERROR_CODE_INVALID_ARGUMENT
        assert second.error.field == "decode_rows[0]"
        assert unpack_int32(second.error.rows).tolist() == [5]
        assert (third.step_id, third.status) == (3, pb.STEP_STATUS_SKIPPED)
        assert gate.launched.empty()


def test_steps_behind_a_failed_one_are_skipped_and_the_stream_ends_by_itself() -> None:
    def fail(step_id: int) -> None:
        if step_id == 2:
            raise StepFailure(ErrorCode.RESOURCE_EXHAUSTED, "no memory left")

    runner = VirtualRunner(TINY, clock=InstantClock(), hooks=RunnerHooks(before_result=fail))
    with serving(runner) as channel:
        stream = Stream(channel).open("a", 0)
        stream.opened()
        stream.plan(first_plan(), decode(2), decode(3))
        statuses = [stream.result().status for _ in range(3)]
        assert statuses == [pb.STEP_STATUS_OK, pb.STEP_STATUS_FAILED, pb.STEP_STATUS_SKIPPED]
        assert stream.end()[0] is grpc.StatusCode.OK
        assert not describe(channel).session_alive
        # The next session starts from clear rows.
        again = Stream(channel).open("a", 1)
        again.opened()
        again.plan(first_plan())
        assert [result.status for result in again.rest()] == [pb.STEP_STATUS_OK]


def test_a_crash_of_the_runner_fails_the_step_without_its_stack() -> None:
    def crash(step_id: int) -> None:
        raise ZeroDivisionError("secret")

    runner = VirtualRunner(TINY, clock=InstantClock(), hooks=RunnerHooks(before_result=crash))
    with serving(runner) as channel:
        stream = Stream(channel).open("a", 0)
        stream.opened()
        stream.plan(first_plan())
        (result,) = stream.rest()
        assert result.error.code == pb.STEP_ERROR_CODE_INTERNAL
        assert "secret" not in result.error.description


def test_a_stale_epoch_is_refused() -> None:
    with serving() as channel:
        Stream(channel).open("a", 0).rest()
        for epoch in (0, 2):
            code, details = Stream(channel).open("a", epoch).end()
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert "epoch" in details
        assert describe(channel).epoch == 1


def test_another_schedulers_live_session_is_not_disturbed_without_take_over() -> None:
    with serving() as channel:
        first = Stream(channel).open("a", 0)
        first.opened()
        code, details = Stream(channel).open("b", 1).end()
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "'a'" in details
        assert describe(channel).epoch == 1
        first.plan(first_plan())
        assert first.result().status == pb.STEP_STATUS_OK
        first.rest()
        # Once it is gone, anyone may open.
        assert Stream(channel).open("b", 1).opened().epoch == 2


@pytest.mark.parametrize(("scheduler_id", "take_over"), [("b", True), ("a", False)])
def test_a_replaced_session_ends_aborted_and_the_new_one_waits_for_its_steps(
    scheduler_id: str, take_over: bool
) -> None:
    gate = Gate(1)
    with serving(gate.runner()) as channel:
        former = Stream(channel).open("a", 0)
        former.opened()
        former.plan(first_plan(), decode(2))
        assert gate.entered.get(timeout=TIMEOUT_SECONDS) == 1
        assert [gate.launched.get(timeout=TIMEOUT_SECONDS) for _ in range(2)] == [1, 2]
        newer = Stream(channel).open(scheduler_id, 1, take_over=take_over)
        while describe(channel).epoch == 1:
            pass
        gate.let_through(1)
        assert newer.opened().epoch == 2
        # What the old session had launched was run to its end first.
        assert gate.history == ["reset", 1, 2, "reset"]
        code, details = former.end()
        assert code is grpc.StatusCode.ABORTED
        assert f"'{scheduler_id}'" in details
        newer.plan(first_plan())
        assert [result.status for result in newer.rest()] == [pb.STEP_STATUS_OK]


def test_of_two_openings_with_one_epoch_exactly_one_wins() -> None:
    with serving() as channel:
        for epoch in range(0, 40):
            streams = [Stream(channel) for _ in range(4)]
            with ThreadPoolExecutor(4) as threads:
                for index, stream in enumerate(streams):
                    threads.submit(stream.open, f"scheduler-{index}", epoch, take_over=True)

                def outcome(stream: Stream) -> int | grpc.StatusCode:
                    try:
                        return stream.opened().epoch
                    except grpc.RpcError:
                        return stream.call.code()

                outcomes = list(threads.map(outcome, streams))
            assert outcomes.count(epoch + 1) == 1
            assert outcomes.count(grpc.StatusCode.FAILED_PRECONDITION) == 3
            for stream in streams:
                stream.close()
                stream.end()


@pytest.mark.parametrize(
    ("requests", "word"),
    [
        ([pb.ExecuteRequest(plan=pb.StepPlan(step_id=1))], "open"),
        ([pb.ExecuteRequest()], "open"),
        ([pb.ExecuteRequest(open=pb.OpenSession())], "scheduler_id"),
        ([], "open"),
    ],
)
def test_a_stream_that_does_not_begin_with_an_opening_is_refused(
    requests: list[pb.ExecuteRequest], word: str
) -> None:
    with serving() as channel:
        stream = Stream(channel)
        for request in requests:
            stream.send(request)
        stream.close()
        expect_invalid_message(channel, stream, word)
        assert describe(channel).epoch == 0


@pytest.mark.parametrize(
    "request_", [pb.ExecuteRequest(), pb.ExecuteRequest(open=pb.OpenSession(scheduler_id="a"))]
)
def test_a_message_out_of_order_ends_the_session_after_its_plans(request_: pb.ExecuteRequest) -> None:
    with serving() as channel:
        stream = Stream(channel).open("a", 0)
        stream.opened()
        stream.plan(first_plan())
        stream.send(request_)
        assert stream.result().status == pb.STEP_STATUS_OK
        expect_invalid_message(channel, stream, "plan")
        assert not describe(channel).session_alive


def test_a_client_that_leaves_in_the_middle_of_a_step_makes_room_at_once() -> None:
    gate = Gate(1)
    with serving(gate.runner()) as channel:
        stream = Stream(channel).open("a", 0)
        stream.opened()
        stream.plan(first_plan(), decode(2))
        assert gate.entered.get(timeout=TIMEOUT_SECONDS) == 1
        stream.call.cancel()
        while describe(channel).session_alive:
            pass
        # No take-over is needed; the new session's rows are clear.
        newer = Stream(channel).open("b", 1)
        gate.let_through(1)
        assert newer.opened().epoch == 2
        newer.plan(first_plan())
        assert [result.status for result in newer.rest()] == [pb.STEP_STATUS_OK]
        stream.close()


def test_no_thread_is_left_after_many_sessions() -> None:
    with serving() as channel:
        for epoch in range(1000):
            stream = Stream(channel).open(f"s{epoch}", epoch)
            stream.opened()
            stream.plan(first_plan())
            stream.result()
            if epoch % 2:
                stream.rest()
            else:
                stream.call.cancel()
                stream.close()
                while describe(channel).session_alive:
                    pass
        readers = [thread for thread in threading.enumerate() if thread.name.startswith("session-")]
        for thread in readers:
            thread.join(TIMEOUT_SECONDS)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("session-")]


def test_stopping_ends_the_stream_as_unavailable() -> None:
    server = ExecutorServer("127.0.0.1:0")
    server.start(VirtualRunner(TINY, clock=InstantClock()), IDENTITY)
    with grpc.insecure_channel(server.address) as channel:
        stream = Stream(channel).open("a", 0)
        stream.opened()
        server.stop(TIMEOUT_SECONDS)
        assert stream.end() == (grpc.StatusCode.UNAVAILABLE, "the executor is stopping")


def test_health_and_reflection_name_the_service() -> None:
    with serving() as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        for name in ("", SERVICE_NAME):
            answer = check(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT_SECONDS)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        asking = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = asking(iter([request]), timeout=TIMEOUT_SECONDS)
        assert SERVICE_NAME in {service.name for service in answer.list_services_response.service}


def test_an_address_in_use_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "executor.sock"
    with serving(listen=f"unix:{path}") as channel:
        with pytest.raises(ValueError, match=r"^--listen: .* in use"):
            ExecutorServer(f"unix:{path}")
        assert describe(channel).epoch == 0
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match=r"^--listen: 127\.0\.0\.1:.* in use"):
            ExecutorServer(f"127.0.0.1:{taken.getsockname()[1]}")


def test_a_socket_file_left_behind_is_replaced_and_any_other_file_kept(tmp_path: Path) -> None:
    path = tmp_path / "executor.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    with serving(listen=f"unix:{path}") as channel:
        assert describe(channel).epoch == 0
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(ValueError, match="is no socket"):
        ExecutorServer(f"unix:{path}")
    assert path.read_text() == "precious"


@contextlib.contextmanager
def running(*flags: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "executor_svc", "--virtual", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_says_where_it_listens_and_stops_cleanly_on_a_signal(number: signal.Signals) -> None:
    with running("--listen", "127.0.0.1:0", "--virtual-step-ms", "0") as process:
        assert process.stderr is not None
        lines = (json.loads(line) for line in process.stderr)
        listening = next(line for line in lines if line["event"] == "listening")
        with grpc.insecure_channel(listening["address"]) as channel:
            assert describe(channel).description.instance_id == listening["instance_id"]
            stream = Stream(channel).open("a", 0)
            stream.opened()
            process.send_signal(number)
            assert stream.end()[0] is grpc.StatusCode.UNAVAILABLE
        assert process.wait(TIMEOUT_SECONDS) == 0


def test_the_command_fails_with_one_line_that_names_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for flags, status, words in (
            (["--listen", address], 1, f"--listen: {address}"),
            (["--listen", "127.0.0.1:0", "--model", str(tmp_path)], 1, str(tmp_path / "config.json")),
            (["--listen", "127.0.0.1:0", "--model", "/no/such"], 1, "/no/such"),
            (["--listen", "127.0.0.1:0", "--block-size", "0"], 2, "--block-size"),
        ):
            with running(*flags) as process:
                _, stderr = process.communicate(timeout=TIMEOUT_SECONDS)
                assert process.returncode == status
                (line,) = stderr.splitlines()
                assert words in line


SLOW_START = """
import sys, time, executor_svc.process as process
build = process.build_virtual_runner
def build_slowly(*arguments):
    time.sleep(float(sys.argv[1]))
    return build(*arguments)
process.build_virtual_runner = build_slowly
sys.exit(process.main(['--virtual', '--listen', sys.argv[2]]))
"""


def test_an_executor_that_warms_up_says_so_and_serves_nothing(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/executor"
    command = [sys.executable, "-c", SLOW_START, "3", address]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            with grpc.insecure_channel(address) as channel:
                grpc.channel_ready_future(channel).result(TIMEOUT_SECONDS)
                first = describe(channel)
                assert first.warming_up
                assert first.description.model_fingerprint
                code, _ = Stream(channel).open("a", 0).end()
                assert code is grpc.StatusCode.UNAVAILABLE
                checked = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
                assert checked.status == health_pb2.HealthCheckResponse.NOT_SERVING
                wait_until(lambda: not describe(channel).warming_up)
                assert describe(channel).description.instance_id == first.description.instance_id
                Stream(channel).open("a", 0).opened()
        finally:
            process.terminate()
            assert process.wait(TIMEOUT_SECONDS) == 0


def test_a_signal_ends_an_executor_that_warms_up(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/executor"
    command = [sys.executable, "-c", SLOW_START, "100", address]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(TIMEOUT_SECONDS)
            assert describe(channel).warming_up
        process.terminate()
        assert process.wait(TIMEOUT_SECONDS) == 0
