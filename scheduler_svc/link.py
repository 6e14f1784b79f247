"""The link to the executor: keeps one session open, sends plans, hands on what comes back.

It tells the engine, in order: SessionOpened, any number of results, SessionLost, and again. Messages of a lost session
never come behind its SessionLost.
"""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc
import structlog

from nanoserve.address import CHANNEL_OPTIONS
from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from scheduler_svc.core.step import Session, StepPlan
from scheduler_svc.errors import internal_problem
from scheduler_svc.executor_access import SECRET_FLAG, ExecutorAccess
from scheduler_svc.plan_writer import PlanWriter
from scheduler_svc.recording import Recorder
from scheduler_svc.wire import StepFailed, StepReport, WireError, decode_result, decode_session, encode_plan

_FIRST_BACKOFF_SECONDS = 0.05
_MAX_BACKOFF_SECONDS = 2.0
_DESCRIBE_TIMEOUT_SECONDS = 5.0
_OPEN_TIMEOUT_SECONDS = 60.0
_WARM_UP_POLL_SECONDS = 0.25
# How long another scheduler's session may look alive, after its process was killed, before that is an error.
_HELD_SECONDS = 5.0
_OPTIONS: list[tuple[str, int]] = [
    *CHANNEL_OPTIONS,
    # Each attempt to connect is this file's own: no back-off is shared with the channel before.
    ("grpc.use_local_subchannel_pool", 1),
]
_log = structlog.get_logger()
_Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.ExecuteRequest, pb.ExecuteResponse]"


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """Plans may be sent."""

    session: Session
    epoch: int
    weights_fingerprint: str


@dataclass(frozen=True, slots=True)
class SessionLost:
    """Plans sent and not answered are void. The link tries to open another session."""

    reason: str


@dataclass(frozen=True, slots=True)
class ExecutorAway:
    """There has been no session for the time allowed. The link goes on trying."""

    reason: str


@dataclass(frozen=True, slots=True)
class Fenced:
    """Another scheduler has taken the executor over. The link has stopped."""

    reason: str


@dataclass(frozen=True, slots=True)
class LinkFailed:
    """The executor is not one that this scheduler can work with. The link has stopped."""

    reason: str


LinkEvent = SessionOpened | StepReport | StepFailed | SessionLost | ExecutorAway | Fenced | LinkFailed


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
        self._address = access.address
        self._emit: Callable[[LinkEvent], None] = lambda event: None
        self._take_over, self._loss_timeout = take_over, loss_timeout
        self._weights_fingerprint = ""
        self._writer: PlanWriter | None = None
        """Of the open session; None before the first."""
        self._stream: asyncio.Task[None] | None = None
        self._away: asyncio.TimerHandle | None = None
        self._reason = "no answer"
        self._was_opened = self._has_lasted = self._has_warned = False
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

    def close(self) -> None:
        """Ends the recording, if there is one. To be called last."""
        if self._recorder is not None:
            self._recorder.close()

    async def run(self, emit: Callable[[LinkEvent], None]) -> None:
        """Keeps a session open until the link has stopped for good; `emit` is told of all that happens, in order."""
        self._emit = emit
        self._start_clock()
        backoff = _FIRST_BACKOFF_SECONDS
        try:
            while True:
                self._has_lasted = False
                try:
                    await self._run_channel()
                except _Lost as lost:
                    self._reason = str(lost)
                    self._warn_once()
                if self._has_lasted:
                    backoff = _FIRST_BACKOFF_SECONDS
                _log.debug("no session", executor=self._address, reason=self._reason, retry_seconds=backoff)
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, _MAX_BACKOFF_SECONDS)
        except _Final as final:
            self._emit(final.event)
        except Exception:
            self._emit(LinkFailed(internal_problem("the executor link failed").description))
        finally:
            self._stop_clock()

    def _warn_once(self) -> None:
        """Says that the executor, never reached so far, is waited for."""
        if not self._was_opened and not self._has_warned:
            self._has_warned = True
            _log.warning(
                "waiting for the executor",
                executor=self._address,
                reason=self._reason,
                timeout_seconds=self._loss_timeout,
            )

    # Being away

    def _start_clock(self) -> None:
        """Starts the clock, anew, that ends in ExecutorAway."""
        self._stop_clock()
        loop = asyncio.get_running_loop()
        self._away = loop.call_later(
            self._loss_timeout, lambda: self._emit(ExecutorAway(f"{self._address}: {self._reason}"))
        )

    def _stop_clock(self) -> None:
        if self._away is not None:
            self._away.cancel()

    # One session

    async def _run_channel(self) -> None:
        """Connects, opens a session and runs it until it is lost. Raises _Lost or _Final."""
        async with self._access.channel(_OPTIONS) as channel:
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
            reason = f"{SECRET_FLAG}: the executor at {self._address} wants another secret"
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
        if description.model_fingerprint != self._model_fingerprint:
            raise self._mismatch("model", description.model_fingerprint, self._model_fingerprint)
        weights = description.weights_fingerprint
        if self._was_opened and weights != self._weights_fingerprint:
            raise self._mismatch("weights", weights, self._weights_fingerprint)

    def _mismatch(self, what: str, got: str, wanted: str) -> _Final:
        reason = f"--executor: {self._address} holds another model: {what} fingerprint {got}, not {wanted}"
        return _Final(LinkFailed(reason))

    async def _open(self, call: _Call, epoch: int) -> None:
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
            answer = None
        if not isinstance(answer, pb.ExecuteResponse):
            refusal = await self._refused(call)
            if await call.code() is grpc.StatusCode.FAILED_PRECONDITION:
                self._last_session = before
            raise refusal
        if answer.WhichOneof("response") != "opened":
            raise _Lost("the executor's first message does not open a session")
        opened = answer.opened
        self._check(opened.description)
        self._weights_fingerprint = opened.description.weights_fingerprint
        self._was_opened, self._held_since = True, None
        self._last_session = (opened.description.instance_id, opened.epoch)
        self._writer = PlanWriter(call)
        self._stop_clock()
        try:
            session = decode_session(opened.description)
        except WireError as error:
            raise _Final(LinkFailed(f"--executor: {self._address}: {error}")) from error
        if self._recorder is not None:
            self._recorder.opened(opened)
        self._emit(SessionOpened(session, opened.epoch, self._weights_fingerprint))

    async def _refused(self, call: _Call) -> Exception:
        """What it means that a session was not opened."""
        code, details = await call.code(), await call.details()
        if code is not grpc.StatusCode.FAILED_PRECONDITION:
            return self._ended(code, details)
        now = asyncio.get_running_loop().time()
        self._held_since = self._held_since or now
        if not self._was_opened and now - self._held_since > _HELD_SECONDS:
            advice = "--take-over ends another scheduler's session"
            return _Final(LinkFailed(f"--executor: {self._address}: {details}; {advice}"))
        return _Lost(details or code.name)

    def _ended(self, code: grpc.StatusCode, details: str | None) -> Exception:
        """What the end of a stream means."""
        reason = f"{code.name}: {details}" if details else code.name
        if code is grpc.StatusCode.ABORTED and self.scheduler_id not in (details or ""):
            return _Final(Fenced(reason))
        return _Lost(reason)

    async def _run_session(self, call: _Call) -> None:
        """Carries messages until the stream ends, and tells the engine that it did."""
        assert self._writer is not None
        self._stream = asyncio.ensure_future(self._read(call))
        try:
            await asyncio.wait([self._stream])
            self._reason = "the session was given up"
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

    async def _read(self, call: _Call) -> None:
        while True:
            try:
                message = await call.read()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                message = None
            if not isinstance(message, pb.ExecuteResponse):
                raise self._ended(await call.code(), await call.details())
            if message.WhichOneof("response") != "result":
                raise WireError("a message that is no result")
            if self._recorder is not None:
                self._recorder.result(message.result)
            event = decode_result(message.result)
            if event is not None:
                self._has_lasted = self._has_lasted or isinstance(event, StepReport)
                self._emit(event)


def _reason(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details()}" if error.details() else error.code().name
