"""Plays a recording against an executor and compares what comes back.

Plans are sent and results awaited in the recording's own order, so that as many plans are in flight at each moment as
there were then. Recorded sessions become sessions of the executor, one after the other. A plan that was never answered
is sent too, since it may be the one that brought its executor down; whatever it brings is compared with nothing.
"""

import secrets
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import grpc

from nanoserve.arrays import unpack_int32
from nanoserve.bearer import Metadata
from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from nanoserve.executor.v1.recording_pb2 import RecordingEntry
from scheduler_svc.executor_access import ExecutorAccess
from scheduler_svc.replay.reader import PlanView, RecordingError

_CALL_TIMEOUT_SECONDS = 10.0
_WARM_UP_POLL_SECONDS = 0.25
_LIMITS = (
    "num_blocks",
    "max_num_seqs",
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_decode_steps",
    "max_plans_in_flight",
)
_SAME = ("block_size", "vocab_size", "model_fingerprint", "weights_fingerprint")


class PlayError(Exception):
    """The recording cannot be played on this executor."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where executor and recording first differ."""

    session: int
    """Number of the session in the recording, from 1."""
    step_id: int
    sub_step: int
    what: str
    """"token", "row status", "rows", "status", "step" or "session"."""
    expected: str
    got: str
    row: int | None = None
    position: int | None = None
    """Of the token sampled, counted from the sequence's first prompt token."""


@dataclass(slots=True)
class Comparison:
    """What was played and how it compares."""

    num_sessions: int = 0
    num_plans: int = 0
    num_results: int = 0
    num_tokens: int = 0
    """Compared."""
    num_different_tokens: int = 0
    num_unanswered: int = 0
    """Plans that the recording has no last result of."""
    divergence: Divergence | None = None
    """The first."""


class _Stopped(Exception):
    """Nothing behind this divergence can be compared."""


def play(
    entries: Iterable[RecordingEntry], executor: ExecutorAccess, *, take_over: bool = False
) -> Comparison:
    """Plays a recording's entries, the header first, on an executor.

    Goes on behind a token that differs, to count, but not behind an answer of another kind. PlayError where the
    executor cannot be reached, is not one that can play the recording, or has another scheduler (unless `take_over`).
    """
    comparison = Comparison()
    with executor.blocking_channel() as channel:
        player = _Player(ExecutorServiceStub(channel), executor.metadata, take_over, comparison)
        try:
            for entry in entries:
                player.take(entry)
            player.end_session()
        except _Stopped:
            pass
        finally:
            player.close()
    return comparison


class _Player:
    """The state between two entries."""

    def __init__(
        self, stub: ExecutorServiceStub, metadata: Metadata, take_over: bool, comparison: Comparison
    ) -> None:
        self._metadata = metadata
        self._stub, self._take_over, self._comparison = stub, take_over, comparison
        self._scheduler_id = f"replay-{secrets.token_hex(8)}"
        self._session: _PlayedSession | None = None

    def take(self, entry: RecordingEntry) -> None:
        match entry.WhichOneof("entry"):
            case "opened":
                self.end_session()
                self._session = self._open(entry.opened)
            case "lost":
                self.end_session()
            case "plan":
                self._open_session().send(entry.plan)
            case "result":
                self._open_session().compare(entry.result)

    def end_session(self) -> None:
        """Waits until the executor has done all that it was sent."""
        if self._session is not None:
            self._session.finish()
        self._session = None

    def close(self) -> None:
        """Gives up the session that is open, if one is."""
        if self._session is not None:
            self._session.cancel()

    def _open_session(self) -> "_PlayedSession":
        if self._session is None:
            raise RecordingError("a plan or a result stands outside a session")
        return self._session

    def _open(self, recorded: pb.SessionOpened) -> "_PlayedSession":
        self._comparison.num_sessions += 1
        try:
            epoch = self._describe(recorded.description)
            session = _PlayedSession(self._stub, self._metadata, self._comparison)
            session.open(
                pb.OpenSession(
                    scheduler_id=self._scheduler_id, expected_epoch=epoch, take_over=self._take_over
                )
            )
        except grpc.RpcError as error:
            details = error.details() or error.code().name
            hint = "; --take-over ends another scheduler's session"
            held = error.code() is grpc.StatusCode.FAILED_PRECONDITION and not self._take_over
            raise PlayError(f"--executor: {details}{hint if held else ''}") from error
        return session

    def _describe(self, recorded: pb.ExecutorDescription) -> int:
        """Returns the epoch of a warm executor that can play what was recorded."""
        while True:
            answer = self._stub.Describe(
                pb.DescribeRequest(), timeout=_CALL_TIMEOUT_SECONDS, metadata=self._metadata
            )
            for name in _SAME:
                got, wanted = getattr(answer.description, name), getattr(recorded, name)
                if got != wanted:
                    raise PlayError(f"--executor: its {name} is {got}, the recording's is {wanted}")
            for name in _LIMITS:
                got, wanted = getattr(answer.description, name), getattr(recorded, name)
                if got < wanted:
                    raise PlayError(f"--executor: its {name} is {got}, the recording needs {wanted}")
            if not answer.warming_up:
                return int(answer.epoch)
            time.sleep(_WARM_UP_POLL_SECONDS)


@dataclass(slots=True)
class _Sent:
    """A plan, and where the tokens that it samples stand: position of sub-step 0's, by row."""

    plan: PlanView
    positions: dict[int, int]


@dataclass(slots=True)
class _PlayedSession:
    """One stream to the executor."""

    stub: ExecutorServiceStub
    metadata: Metadata
    comparison: Comparison
    _requests: SimpleQueue[pb.ExecuteRequest | None] = field(default_factory=SimpleQueue)
    _call: Any = None
    """The stream: an iterator of responses that can be cancelled."""
    _sent: deque[_Sent] = field(default_factory=deque)
    _lengths: dict[int, int] = field(default_factory=dict)
    """Positions of each row that are computed or planned."""

    def open(self, opening: pb.OpenSession) -> None:
        """Opens the session; grpc.RpcError where that is refused."""
        self._requests.put(pb.ExecuteRequest(open=opening))
        self._call = self.stub.Execute(iter(self._requests.get, None), metadata=self.metadata)
        next(self._call)

    def send(self, plan: pb.StepPlan) -> None:
        """Sends a plan as it was recorded."""
        self.comparison.num_plans += 1
        view, positions = PlanView.of(plan), {}
        for start in view.starts:
            self._lengths[start.row] = start.num_computed_tokens
        for run in view.prefills:
            self._lengths[run.row] = positions[run.row] = run.first_position + run.num_tokens
        for row, steps in zip(view.decode_rows, view.decode_row_steps, strict=True):
            positions[row] = self._lengths.get(row, 0) + 1
            self._lengths[row] = self._lengths.get(row, 0) + steps
        self._sent.append(_Sent(view, positions))
        self._requests.put(pb.ExecuteRequest(plan=plan))

    def compare(self, recorded: pb.StepResult) -> None:
        """Awaits the next result and compares it with a recorded one."""
        if not self._sent:
            raise RecordingError(f"a result of step {recorded.step_id} stands before its plan")
        sent = self._sent[0]
        result = self._receive(recorded)
        self.comparison.num_results += 1
        if recorded.last:
            self._sent.popleft()
        for what in ("step", "status"):
            expected, got = _shape(what, recorded), _shape(what, result)
            if expected != got:
                self._diverge(recorded, what, expected, got)
                raise _Stopped
        self._compare_rows(sent, recorded, result)

    def _compare_rows(self, sent: _Sent, recorded: pb.StepResult, result: pb.StepResult) -> None:
        rows = unpack_int32(recorded.rows).tolist()
        if recorded.rows != result.rows:
            self._diverge(recorded, "rows", str(rows), str(unpack_int32(result.rows).tolist()))
            raise _Stopped
        self.comparison.num_tokens += len(rows)
        if (recorded.token_ids, recorded.row_statuses) == (result.token_ids, result.row_statuses):
            return
        expected, got = unpack_int32(recorded.token_ids).tolist(), unpack_int32(result.token_ids).tolist()
        statuses = [_statuses(each, len(rows)) for each in (recorded, result)]
        for index, row in enumerate(rows):
            position = sent.positions.get(row, 0) + recorded.sub_step
            if statuses[0][index] != statuses[1][index]:
                names = (pb.RowStatus.Name(each[index]) for each in statuses)
                self._diverge(recorded, "row status", *names, row=row, position=position)
            if expected[index] != got[index]:
                self.comparison.num_different_tokens += 1
                self._diverge(
                    recorded, "token", str(expected[index]), str(got[index]), row=row, position=position
                )

    def finish(self) -> None:
        """Sends no more, and waits for the stream's end; how it ends behind a recorded loss is not compared."""
        self.comparison.num_unanswered += len(self._sent)
        self._requests.put(None)
        try:
            for _ in self._call:
                pass
        except grpc.RpcError as error:
            if not self._sent:
                raise PlayError(
                    f"--executor: the session broke: {error.details() or error.code().name}"
                ) from error

    def cancel(self) -> None:
        """Gives the session up."""
        self._requests.put(None)
        if self._call is not None:
            self._call.cancel()

    def _receive(self, recorded: pb.StepResult) -> pb.StepResult:
        try:
            response: pb.ExecuteResponse = next(self._call)
            return response.result
        except StopIteration:
            ending = "the stream ended"
        except grpc.RpcError as error:
            ending = f"{error.code().name}: {error.details()}"
        self._diverge(recorded, "session", "a result", ending)
        raise _Stopped

    def _diverge(
        self,
        recorded: pb.StepResult,
        what: str,
        expected: str,
        got: str,
        *,
        row: int | None = None,
        position: int | None = None,
    ) -> None:
        """Notes a divergence, if it is the first."""
        if self.comparison.divergence is None:
            number, step, sub_step = self.comparison.num_sessions, recorded.step_id, recorded.sub_step
            self.comparison.divergence = Divergence(
                number, step, sub_step, what, expected, got, row, position
            )


def _shape(what: str, result: pb.StepResult) -> str:
    """What must be equal for the rest of two results to be comparable, as text."""
    if what == "step":
        return f"{result.step_id}.{result.sub_step}{' (last)' if result.last else ''}"
    status = pb.StepStatus.Name(result.status)
    if result.status != pb.STEP_STATUS_FAILED:
        return status
    return f"{status} {pb.StepErrorCode.Name(result.error.code)}"


def _statuses(result: pb.StepResult, count: int) -> list[int]:
    return unpack_int32(result.row_statuses).tolist() or [pb.ROW_STATUS_OK] * count
