"""The link to the executor: keeps one session open, sends plans, hands on what comes back.

It tells the engine, in order: SessionOpened, any number of results, SessionLost, and again. Messages of a lost session
never come behind its SessionLost.
"""

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import grpc
import structlog

from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from scheduler_svc.core.step import StepPlan
from scheduler_svc.errors import internal_problem
from scheduler_svc.executor_access import SECRET_FLAG, ExecutorAccess
from scheduler_svc.link_events import (
    ExecutorAway,
    Fenced,
    LinkEvent,
    LinkFailed,
    SessionLost,
    SessionOpened,
)
from scheduler_svc.plan_writer import PlanWriter
from scheduler_svc.prepared_session import (
    LINK_OPTIONS,
    ExecutorCall,
    PreparedSession,
    SwitchRefused,
    prepare_session,
)
from scheduler_svc.recording import Recorder
from scheduler_svc.wire import StepReport, WireError, decode_result, decode_session, encode_plan

_FIRST_BACKOFF_SECONDS = 0.05
_MAX_BACKOFF_SECONDS = 2.0
_ENDED = object()
_DESCRIBE_TIMEOUT_SECONDS = 5.0
_OPEN_TIMEOUT_SECONDS = 60.0
_WARM_UP_POLL_SECONDS = 0.25
# How long another scheduler's session may look alive, after its process was killed, before that is an error.
_HELD_SECONDS = 5.0
_log = structlog.get_logger()


class _Lost(Exception):
    """There is no session, but there may be one later."""


class _Final(Exception):
    """There will be no session any more: `event` says why."""

    def __init__(self, event: Fenced | LinkFailed) -> None:
        super().__init__(event.reason)
        self.event = event


class ExecutorLink:
    """See the module's docstring. `run` is its task."""

    def __init__(
        self,
        access: ExecutorAccess,
        model_fingerprint: str,
        *,
        take_over: bool = False,
        loss_timeout: float = 120.0,
        record: Path | None = None,
    ) -> None:
        """`loss_timeout` is in seconds: how long without a session before ExecutorAway.

        `record` is where to write all that passes; ValueError where that cannot be opened.
        """
        self.scheduler_id = secrets.token_hex(16)
        self._access, self._model_fingerprint = access, model_fingerprint
        self._emit: Callable[[LinkEvent], None] = lambda event: None
        self._take_over, self._loss_timeout = take_over, loss_timeout
        self._weights_fingerprint = ""
        self._writer: PlanWriter | None = None
        """Of the open session; None before the first."""
        self._stream: asyncio.Task[None] | None = None
        self._attempt: asyncio.Task[None] | None = None
        self._next: PreparedSession | None = None
        """The session to go on with once the present one is left."""
        self._away: asyncio.TimerHandle | None = None
        self._reason = "no answer"
        self._was_opened = self._has_warned = False
        self._backoff_seconds = _FIRST_BACKOFF_SECONDS
        """How long to wait before the next attempt; as at first again once a session has brought a result."""
        # The executor and epoch of our last session; None while an opening of ours may or may not have succeeded.
        self._last_session: tuple[str, int] | None = None
        self._held_since: float | None = None
        self._recorder = Recorder(record, self.scheduler_id, model_fingerprint) if record else None

    def send(self, plan: StepPlan) -> None:
        """Sends a plan of the open session; returns at once."""
        assert self._writer is not None
        message = encode_plan(plan)
        self._writer.send(message)
        if self._recorder is not None:
            self._recorder.plan(message.plan)

    def abandon(self) -> None:
        """Ends the open session, whose results make no sense; SessionLost follows."""
        if self._stream is not None:
            self._stream.cancel()

    async def prepare(self, address: str) -> PreparedSession:
        """Opens a session with another executor, to hand over to; SwitchRefused where there can be none.

        But for the address it is reached as the present one is.
        """
        access = replace(self._access, address=address)
        return await prepare_session(access, self.scheduler_id, self._check_other)

    def _check_other(self, description: pb.ExecutorDescription) -> None:
        """SwitchRefused where what runs could not go on there."""
        if self._last_session is not None and description.instance_id == self._last_session[0]:
            raise SwitchRefused("that is the present executor")
        difference = self._difference(description)
        if difference is not None:
            raise SwitchRefused(f"holds another model: {difference}")
        try:
            decode_session(description)
        except WireError as error:
            raise SwitchRefused(str(error)) from error

    def hand_over(self, prepared: PreparedSession) -> None:
        """Leaves the present executor, if there is one, for another; SessionOpened follows. No plan is unanswered."""
        self._next = prepared
        if self._stream is not None:
            self._stream.cancel()
        elif self._attempt is not None:
            self._attempt.cancel()

    def close(self) -> None:
        """Ends the recording, if there is one. To be called last."""
        if self._recorder is not None:
            self._recorder.close()

    async def run(self, emit: Callable[[LinkEvent], None]) -> None:
        """Keeps a session open until the link has stopped for good; `emit` is told of all that happens, in order."""
        self._emit = emit
        self._start_clock()
        try:
            while True:
                self._attempt = asyncio.ensure_future(self._try_once())
                try:
                    await self._attempt
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if self._next is None or (task is not None and task.cancelling()):
                        raise
        except _Final as final:
            self._emit(final.event)
        except Exception:
            self._emit(LinkFailed(internal_problem("the executor link failed").description))
        finally:
            self._stop_clock()

    async def _try_once(self) -> None:
        """Runs a session until it is lost, and waits before the next one unless that is there already."""
        try:
            await self._run_channel()
        except _Lost as lost:
            self._reason = str(lost)
            self._warn_once()
        if self._next is None:
            seconds = self._backoff_seconds
            self._backoff_seconds = min(2 * seconds, _MAX_BACKOFF_SECONDS)
            _log.debug(
                "no session", executor=self._access.address, reason=self._reason, retry_seconds=seconds
            )
            await asyncio.sleep(seconds)

    def _warn_once(self) -> None:
        """Says that the executor, never reached so far, is waited for."""
        if not self._was_opened and not self._has_warned:
            self._has_warned = True
            _log.warning(
                "waiting for the executor",
                executor=self._access.address,
                reason=self._reason,
                timeout_seconds=self._loss_timeout,
            )

    # Being away

    def _start_clock(self) -> None:
        """Starts the clock, anew, that ends in ExecutorAway."""
        self._stop_clock()
        loop = asyncio.get_running_loop()
        self._away = loop.call_later(
            self._loss_timeout, lambda: self._emit(ExecutorAway(f"{self._access.address}: {self._reason}"))
        )

    def _stop_clock(self) -> None:
        if self._away is not None:
            self._away.cancel()

    # One session

    async def _run_channel(self) -> None:
        """Connects, opens a session and runs it until it is lost. Raises _Lost or _Final."""
        prepared, self._next = self._next, None
        if prepared is not None:
            self._access = prepared.access
            async with prepared.channel:
                try:
                    self._begin(prepared.call, prepared.opened)
                    await self._run_session(prepared.call)
                finally:
                    prepared.call.cancel()
            return
        async with self._access.channel(LINK_OPTIONS) as channel:
            stub = ExecutorServiceStub(channel)
            try:
                epoch = await self._describe(stub)
            except grpc.aio.AioRpcError as error:
                raise self._undescribed(error) from error
            call = stub.Execute(metadata=self._access.metadata)
            try:
                await self._open(call, epoch)
                await self._run_session(call)
            finally:
                call.cancel()

    async def _describe(self, stub: ExecutorServiceStub) -> int:
        """Returns the epoch of a warm executor that holds the right model."""
        while True:
            answer: pb.DescribeResponse = await stub.Describe(
                pb.DescribeRequest(), timeout=_DESCRIBE_TIMEOUT_SECONDS, metadata=self._access.metadata
            )
            self._check(answer.description)
            if self._is_fenced(answer):
                raise _Final(Fenced(f"epoch {answer.epoch} of the executor is another's"))
            if not answer.warming_up:
                return answer.epoch
            self._reason = "the executor is still warming up"
            if not self._was_opened:
                self._start_clock()
            await asyncio.sleep(_WARM_UP_POLL_SECONDS)

    def _undescribed(self, error: grpc.aio.AioRpcError) -> Exception:
        """What it means that the executor does not say what it is."""
        if error.code() is grpc.StatusCode.UNAUTHENTICATED and not self._was_opened:
            reason = f"{SECRET_FLAG}: the executor at {self._access.address} wants another secret"
            return _Final(LinkFailed(reason))
        return _Lost(_reason(error))

    def _is_fenced(self, answer: pb.DescribeResponse) -> bool:
        """Whether another scheduler has had the executor since our last session.

        Its end says so too, but a write that fails first hides the stream's status.
        """
        if self._last_session is None:
            return False
        instance_id, epoch = self._last_session
        return answer.description.instance_id == instance_id and answer.epoch != epoch

    def _check(self, description: pb.ExecutorDescription) -> None:
        """_Final where the executor holds another model, or not the weights it held before."""
        difference = self._difference(description)
        if difference is not None:
            reason = f"--executor: {self._access.address} holds another model: {difference}"
            raise _Final(LinkFailed(reason))

    def _difference(self, description: pb.ExecutorDescription) -> str | None:
        """How an executor's model differs from that of this scheduler; None where it does not."""
        model, weights = description.model_fingerprint, description.weights_fingerprint
        if model != self._model_fingerprint:
            return f"model fingerprint {model}, not {self._model_fingerprint}"
        if self._was_opened and weights != self._weights_fingerprint:
            return f"weights fingerprint {weights}, not {self._weights_fingerprint}"
        return None

    async def _open(self, call: ExecutorCall, epoch: int) -> None:
        """Opens the session and tells the engine."""
        # Only a scheduler's first session takes over: two of them must not go on stealing from each other.
        take_over = self._take_over and not self._was_opened
        before, self._last_session = self._last_session, None
        opening = pb.OpenSession(scheduler_id=self.scheduler_id, expected_epoch=epoch, take_over=take_over)
        try:
            async with asyncio.timeout(_OPEN_TIMEOUT_SECONDS):
                await call.write(pb.ExecuteRequest(open=opening))
                answer = await call.read()
        except TimeoutError:
            raise _Lost("the executor does not open a session") from None
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            answer = _ENDED
        if answer is None:  # what could not be decoded; the call goes on
            raise _Lost("the executor's first message cannot be read")
        if not isinstance(answer, pb.ExecuteResponse):
            refusal = await self._refused(call)
            if await call.code() is grpc.StatusCode.FAILED_PRECONDITION:
                self._last_session = before
            raise refusal
        if answer.WhichOneof("response") != "opened":
            raise _Lost("the executor's first message does not open a session")
        self._check(answer.opened.description)
        self._begin(call, answer.opened)

    def _begin(self, call: ExecutorCall, opened: pb.SessionOpened) -> None:
        """Tells the engine of a session that is open."""
        self._weights_fingerprint = opened.description.weights_fingerprint
        self._was_opened, self._held_since = True, None
        self._last_session = (opened.description.instance_id, opened.epoch)
        self._writer = PlanWriter(call)
        self._reason = "this scheduler ends it"
        self._stop_clock()
        try:
            session = decode_session(opened.description)
        except WireError as error:
            raise _Final(LinkFailed(f"--executor: {self._access.address}: {error}")) from error
        if self._recorder is not None:
            self._recorder.opened(opened)
        self._emit(SessionOpened(session, opened.epoch, self._weights_fingerprint))

    async def _refused(self, call: ExecutorCall) -> Exception:
        """What it means that a session was not opened."""
        code, details = await call.code(), await call.details()
        if code is not grpc.StatusCode.FAILED_PRECONDITION:
            return self._ended(code, details)
        now = asyncio.get_running_loop().time()
        self._held_since = self._held_since or now
        if not self._was_opened and now - self._held_since > _HELD_SECONDS:
            advice = "--take-over ends another scheduler's session"
            return _Final(LinkFailed(f"--executor: {self._access.address}: {details}; {advice}"))
        return _Lost(details or code.name)

    def _ended(self, code: grpc.StatusCode, details: str | None) -> Exception:
        """What the end of a stream means."""
        reason = f"{code.name}: {details}" if details else code.name
        if code is grpc.StatusCode.ABORTED and self.scheduler_id not in (details or ""):
            return _Final(Fenced(reason))
        return _Lost(reason)

    async def _run_session(self, call: ExecutorCall) -> None:
        """Carries messages until the stream ends, and tells the engine that it did."""
        assert self._writer is not None
        self._stream = asyncio.ensure_future(self._read(call))
        try:
            await asyncio.wait([self._stream])
            self._reason = "the session was given up" if self._next is None else "another executor takes over"
            if not self._stream.cancelled():
                await self._stream  # raises what ended it
        except WireError as error:
            raise _Lost(f"the executor breaks the contract: {error}") from error
        except _Lost as lost:
            self._reason = str(lost)
            raise
        finally:
            self._stream.cancel()
            self._stream = None
            await self._writer.close()
            self._start_clock()
            if self._recorder is not None:
                self._recorder.lost(self._reason)
            self._emit(SessionLost(self._reason))
        raise _Lost(self._reason)

    async def _read(self, call: ExecutorCall) -> None:
        while True:
            message: object = _ENDED
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                message = await call.read()
            if message is None:  # what could not be decoded; the call goes on
                raise WireError("a message that cannot be read")
            if not isinstance(message, pb.ExecuteResponse):
                raise self._ended(await call.code(), await call.details())
            if message.WhichOneof("response") != "result":
                raise WireError("a message that is no result")
            if self._recorder is not None:
                self._recorder.result(message.result)
            event = decode_result(message.result)
            if isinstance(event, StepReport):
                self._backoff_seconds = _FIRST_BACKOFF_SECONDS
            if event is not None:
                self._emit(event)


def _reason(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details()}" if error.details() else error.code().name
