"""The gRPC face of an executor: ExecutorService, health and reflection on one server."""

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import NoReturn

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2_grpc import add_ServerReflectionServicer_to_server

from executor_svc import wire
from executor_svc.profile.profiler import Profiler, ProfileRefused, Profiling, StepsGoOn
from executor_svc.runner import StepRunner
from executor_svc.session import (
    ExecutorStopping,
    MessageOutOfOrder,
    OpeningMissing,
    OpenRefused,
    Session,
    SessionCrashed,
    SessionEnded,
    SessionReplaced,
)
from executor_svc.session_manager import SessionManager
from executor_svc.warming import WarmingService
from executor_svc.wire import Identity
from nanoserve.address import SERVER_OPTIONS, bound_address
from nanoserve.bearer import SecretInterceptor
from nanoserve.decoding import CheckedServer
from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve.executor.v1 import executor_pb2_grpc
from nanoserve.listening import BoundSocket, check_free
from nanoserve.profiles import MAX_STEPS, encode_profile
from nanoserve.tls import ServerTls

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ExecutorService"].full_name
# Each open stream and each call holds a thread. There is one session at a time, and a few that wait to open; the
# threads that these may not take are left to Describe.
_NUM_THREADS = 32
_NUM_HEALTH_THREADS = 16
_MAX_STREAMS = 16
# How long a stream may keep its thread without saying what it wants.
_OPENING_SECONDS = 10.0
# How long the steps under way when the grace is over may go on, before they are taken to hang.
_DRAIN_SECONDS = 3.0
_STATUSES: dict[type[SessionEnded], grpc.StatusCode] = {
    OpenRefused: grpc.StatusCode.FAILED_PRECONDITION,
    SessionReplaced: grpc.StatusCode.ABORTED,
    ExecutorStopping: grpc.StatusCode.UNAVAILABLE,
    MessageOutOfOrder: grpc.StatusCode.INVALID_ARGUMENT,
    OpeningMissing: grpc.StatusCode.DEADLINE_EXCEEDED,
    SessionCrashed: grpc.StatusCode.INTERNAL,
}
_logger = structlog.get_logger()


class ExecutorService(executor_pb2_grpc.ExecutorServiceServicer):
    """Serves one runner to one session at a time."""

    def __init__(self, runner: StepRunner, identity: Identity, profiling: Profiling | None = None) -> None:
        """Without `profiling` profiles are refused."""
        self.sessions = SessionManager(runner)
        self.profiler: Profiler | None = None
        if profiling is not None:
            self.profiler = Profiler(self.sessions.quiet, self.sessions.tap, profiling)
        self._free_streams = threading.Semaphore(_MAX_STREAMS)
        self._description = wire.encode_description(runner.limits, runner.device, runner.dtype, identity)

    def Describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.DescribeResponse:
        """Says what the executor is; a server of this process answers only once it is warm."""
        epoch, alive = self.sessions.state()
        return pb.DescribeResponse(description=self._description, epoch=epoch, session_alive=alive)

    def Execute(
        self, request_iterator: Iterator[pb.ExecuteRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ExecuteResponse]:
        """Runs a session; RESOURCE_EXHAUSTED where too many streams are open."""
        if not self._free_streams.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{_MAX_STREAMS} streams are open already")
        try:
            yield from self._run(request_iterator, context)
        finally:
            self._free_streams.release()

    def _run(
        self, request_iterator: Iterator[pb.ExecuteRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ExecuteResponse]:
        """Runs a session: the calling thread answers, another one reads."""
        session = self._open(request_iterator, context)
        try:
            self.sessions.prepare(session)
            if session.alive:
                yield pb.ExecuteResponse(
                    opened=pb.SessionOpened(epoch=session.epoch, description=self._description)
                )
                _logger.info("session_opened", scheduler_id=session.scheduler_id, epoch=session.epoch)
                name = f"session-{session.epoch}-reader"
                threading.Thread(
                    target=_read, args=(session, request_iterator), name=name, daemon=True
                ).start()
            for result in session.results():
                yield pb.ExecuteResponse(result=result)
        except SessionEnded as end:
            _abort(context, end)
        except Exception:
            _logger.exception("session_crashed", epoch=session.epoch)
            _abort(context, SessionCrashed())
        finally:
            session.end()

    def _open(self, request_iterator: Iterator[pb.ExecuteRequest], context: grpc.ServicerContext) -> Session:
        try:
            session = self.sessions.claim(_read_opening(request_iterator))
        except SessionEnded as end:
            _abort(context, end)
        if not context.add_callback(session.end):
            session.end()  # the call is over already
        return session

    def StartProfile(
        self, request: pb.StartProfileRequest, context: grpc.ServicerContext
    ) -> pb.StartProfileResponse:
        """Begins a profile, between two steps."""
        if not 0 <= request.num_steps <= MAX_STEPS:
            rule = f"num_steps: is {request.num_steps}, must be in [0, {MAX_STEPS}]"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, rule)
        profiler = self._profiler(context)
        try:
            profiler.start(request.num_steps, request.after_step_id)
        except ProfileRefused as refusal:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(refusal))
        return pb.StartProfileResponse()

    def StopProfile(
        self, request: pb.StopProfileRequest, context: grpc.ServicerContext
    ) -> pb.StopProfileResponse:
        """Ends the profile and returns it."""
        profiler = self._profiler(context)
        try:
            response: pb.StopProfileResponse = encode_profile(profiler.stop(), pb.StopProfileResponse)
        except StepsGoOn as refusal:
            context.abort(grpc.StatusCode.UNAVAILABLE, str(refusal))
        except ProfileRefused as refusal:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(refusal))
        return response

    def _profiler(self, context: grpc.ServicerContext) -> Profiler:
        if self.profiler is None:
            why = "--profile-dir: the executor was started without it, so it records no profiles"
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, why)
        return self.profiler

    def close(self) -> None:
        """Ends what is left and frees the runner."""
        if self.profiler is not None:
            self.profiler.close()
        self.sessions.close()


def _abort(context: grpc.ServicerContext, end: SessionEnded) -> NoReturn:
    """Ends the call with the status of a session's end."""
    context.abort(_STATUSES[type(end)], str(end))


def _read_opening(requests: Iterator[pb.ExecuteRequest]) -> pb.OpenSession:
    """The first message of a stream; SessionEnded where it is another, or none comes in time."""
    arrived: SimpleQueue[pb.ExecuteRequest | None] = SimpleQueue()

    def read() -> None:
        first = None
        with contextlib.suppress(grpc.RpcError):  # the call is over
            first = next(requests, None)
        arrived.put(first)

    # gRPC waits for a message without a limit, so another thread has to; it goes when the call is over.
    threading.Thread(target=read, name="session-opening", daemon=True).start()
    try:
        first = arrived.get(timeout=_OPENING_SECONDS)
    except Empty:
        raise OpeningMissing(f"open: did not come within {_OPENING_SECONDS:g} s") from None
    if first is None or first.WhichOneof("request") != "open":
        raise MessageOutOfOrder("open: must be the first message")
    if not first.open.scheduler_id:
        raise MessageOutOfOrder("open.scheduler_id: must not be empty")
    return first.open


def _read(session: Session, requests: Iterator[pb.ExecuteRequest]) -> None:
    """The reading thread: takes plans until the stream ends, then sees what they launched to its end."""
    try:
        for request in requests:
            arrived_ns = time.monotonic_ns()
            if request.WhichOneof("request") != "plan":
                session.finish(MessageOutOfOrder("plan: must be set in every message but the first"))
                break
            session.submit(request.plan, arrived_ns)
    except grpc.RpcError:
        pass  # the call was cancelled, or its connection is gone: end() has been called
    except Exception:
        _logger.exception("reader_crashed", epoch=session.epoch)
        session.finish(SessionCrashed())
    session.finish()
    session.wait_ended()
    session.drain()
    _logger.info("session_ended", scheduler_id=session.scheduler_id, epoch=session.epoch)


class ExecutorServer:
    """A gRPC server at one address: bound when made, answering from `warm_up` and serving from `start` to `stop`."""

    def __init__(self, listen: str, tls: ServerTls | None = None, secret: str | None = None) -> None:
        """Binds; ValueError, naming the flag, where the address cannot be had or a file of `tls` is no good.

        With a `secret`, every call but those to health has to show it.
        """
        credentials = None if tls is None else tls.credentials()
        check_free(listen)
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="executor-rpc")
        # Health asks for no secret: who calls it and then says nothing keeps other probes waiting, and no scheduler.
        self._health_threads = ThreadPoolExecutor(_NUM_HEALTH_THREADS, thread_name_prefix="executor-health")
        interceptors: list[grpc.ServerInterceptor] = [] if secret is None else [SecretInterceptor(secret)]
        self._server = grpc.server(self._threads, interceptors=interceptors, options=SERVER_OPTIONS)
        try:
            if credentials is None:
                port = self._server.add_insecure_port(listen)
            else:
                port = self._server.add_secure_port(listen, credentials)
        except RuntimeError as error:
            raise ValueError(f"--listen: {listen}: {error}") from error
        self.address = bound_address(listen, port)
        """The address bound, port 0 replaced by the one picked."""
        self._socket_file = BoundSocket(listen)
        self._health = health.HealthServicer()
        self._face: WarmingService | None = None
        self._service: ExecutorService | None = None
        self._stopped = threading.Event()

    def warm_up(self, identity: Identity) -> None:
        """Listens: Describe says who warms up, and health NOT_SERVING."""
        self._face = WarmingService(identity)
        checked = CheckedServer(self._server)
        executor_pb2_grpc.add_ExecutorServiceServicer_to_server(self._face, checked)
        health_pb2_grpc.add_HealthServicer_to_server(
            self._health, CheckedServer(self._server, self._health_threads)
        )
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        add_ServerReflectionServicer_to_server(reflection.ReflectionServicer(names), checked)
        self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._server.start()

    def start(self, runner: StepRunner, identity: Identity, profiling: Profiling | None = None) -> None:
        """Serves the runner, which must be ready; health is SERVING from now on."""
        if self._face is None:
            self.warm_up(identity)
        assert self._face is not None
        self._face.ready = self._service = ExecutorService(runner, identity, profiling)
        self._set_health(health_pb2.HealthCheckResponse.SERVING)

    def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", SERVICE_NAME):
            self._health.set(name, status)

    def stop(self, grace_seconds: float) -> bool:
        """Stops: health NOT_SERVING, plans taken are answered, other calls get the grace; then frees the runner.

        False where that fails, or a step does not end: threads that wait for the device then keep this process alive
        until it is ended by force.
        """
        stopping = threading.Thread(
            target=self._stop, args=(grace_seconds,), name="executor-stop", daemon=True
        )
        stopping.start()
        stopping.join(grace_seconds + _DRAIN_SECONDS)
        return self._stopped.is_set()

    def _stop(self, grace_seconds: float) -> None:
        self._health.enter_graceful_shutdown()
        if self._service is not None:
            self._service.sessions.stop()
        self._server.stop(grace_seconds).wait()
        if self._service is not None:
            self._service.close()
        self._threads.shutdown()
        self._health_threads.shutdown()
        self._socket_file.remove()
        self._stopped.set()
