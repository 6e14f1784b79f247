"""A scheduler's end of an Execute stream, for tests, and a server in this process."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue

import grpc
from executor_plans import TINY, encode_plan, make_plan, make_start

from executor_svc.plan import Prefill, StepPlan
from executor_svc.profile.profiler import Profiling
from executor_svc.runner import StepRunner
from executor_svc.service import ExecutorServer
from executor_svc.virtual import InstantClock, RunnerHooks, VirtualRunner
from executor_svc.wire import Identity
from nanoserve.address import CHANNEL_OPTIONS
from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve.executor.v1.executor_pb2_grpc import ExecutorServiceStub

IDENTITY = Identity("instance", "model", "weights", "0.0")
TIMEOUT_SECONDS = 20


class Stream:
    """One Execute stream; messages are sent as they are put, results read one by one."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._requests: SimpleQueue[pb.ExecuteRequest | None] = SimpleQueue()
        self.call = ExecutorServiceStub(channel).Execute(
            iter(self._requests.get, None), timeout=TIMEOUT_SECONDS
        )

    def send(self, request: pb.ExecuteRequest) -> None:
        self._requests.put(request)

    def open(self, scheduler_id: str, epoch: int, *, take_over: bool = False) -> "Stream":
        opening = pb.OpenSession(scheduler_id=scheduler_id, expected_epoch=epoch, take_over=take_over)
        self.send(pb.ExecuteRequest(open=opening))
        return self

    def opened(self) -> pb.SessionOpened:
        """Waits for SessionOpened."""
        response = next(self.call)
        assert response.WhichOneof("response") == "opened"
        return response.opened

    def plan(self, *plans: StepPlan) -> None:
        for plan in plans:
            self.send(pb.ExecuteRequest(plan=encode_plan(plan)))

    def result(self) -> pb.StepResult:
        """Waits for the next result."""
        response = next(self.call)
        assert response.WhichOneof("response") == "result"
        return response.result

    def close(self) -> None:
        """Says that no more will be sent."""
        self._requests.put(None)

    def rest(self) -> list[pb.StepResult]:
        """Closes, and reads to the end, which must be OK."""
        self.close()
        return [response.result for response in self.call]

    def end(self) -> tuple[grpc.StatusCode, str]:
        """Waits for the stream's end: its status. Results before it are dropped."""
        try:
            for _ in self.call:
                pass
        except grpc.RpcError:
            pass
        self.close()
        return self.call.code(), self.call.details()


@contextmanager
def serving(
    runner: StepRunner | None = None, listen: str = "127.0.0.1:0", profiling: Profiling | None = None
) -> Iterator[grpc.Channel]:
    """A server of a runner, and a channel to it."""
    server = ExecutorServer(listen)
    server.start(runner or VirtualRunner(TINY, clock=InstantClock(), checked=True), IDENTITY, profiling)
    try:
        with grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
            yield channel
    finally:
        server.stop(0)


class Gate:
    """Holds steps open: a step's result comes only once it is let through."""

    def __init__(self, *held: int) -> None:
        self.launched: SimpleQueue[int] = SimpleQueue()
        self.entered: SimpleQueue[int] = SimpleQueue()
        self.history: list[int | str] = []
        """Steps as they finish, by id, and "reset"."""
        self._events = {step_id: threading.Event() for step_id in held}

    def runner(self) -> VirtualRunner:
        """A runner behind the gate."""
        hooks = RunnerHooks(on_launch=self.launched.put, before_result=self._hold)
        return _RecordingRunner(self.history, hooks)

    def let_through(self, step_id: int) -> None:
        self._events[step_id].set()

    def _hold(self, step_id: int) -> None:
        self.entered.put(step_id)
        if step_id in self._events:
            assert self._events[step_id].wait(TIMEOUT_SECONDS)
        self.history.append(step_id)


class _RecordingRunner(VirtualRunner):
    def __init__(self, history: list[int | str], hooks: RunnerHooks) -> None:
        super().__init__(TINY, clock=InstantClock(), checked=True, hooks=hooks)
        self._history = history

    def reset(self) -> None:
        super().reset()
        self._history.append("reset")


def first_plan(step_id: int = 1, row: int = 0) -> StepPlan:
    """Starts a row and computes its prompt of nine tokens."""
    start = make_start(row, range(9), [1, 2, 3, 4])
    return make_plan(step_id, starts=(start,), prefills=(Prefill(row, 0, 9, True),))


def wait_until(holds: Callable[[], bool]) -> None:
    """Returns once that is so."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)
