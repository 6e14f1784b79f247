"""Checks a recording offline: that its plans keep the contract and its results answer them.

A second opinion: it is written from the contract alone and shares no code with the executor's own validation, so that
one slip is not made twice. Plans are taken in the order of the recording, which is that of cause and effect: a prefix
hit must be on tokens that results before it have made known.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from nanoserve.arrays import unpack_int32
from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve.executor.v1.recording_pb2 import RecordingEntry, RecordingHeader
from scheduler_svc.replay.blocks import Blocks, FaultKind, Found, Stay, require
from scheduler_svc.replay.reader import PlanView, StartView

_MAX_PLAN_BYTES = 2 * 1024 * 1024
# The executor says with these that the scheduler was wrong; other failures are its own.
_SCHEDULER_FAULTS = (pb.STEP_ERROR_CODE_INVALID_ARGUMENT, pb.STEP_ERROR_CODE_DATA_LOSS)


@dataclass(frozen=True, slots=True)
class Fault:
    """The first thing that is wrong; what comes after it is not judged."""

    kind: FaultKind
    session: int
    """Number of the session in the recording, from 1; 0 before the first."""
    step_id: int
    """The plan concerned; 0 where none is."""
    description: str


@dataclass(slots=True)
class Report:
    """What a recording holds, up to the fault if there is one."""

    num_sessions: int = 0
    num_plans: int = 0
    num_results: int = 0
    num_starts: int = 0
    num_hit_tokens: int = 0
    num_tokens: int = 0
    """Sampled."""
    num_failures: int = 0
    """Results that are FAILED, or single rows that could not sample."""
    fault: Fault | None = None


@dataclass(slots=True)
class _InFlight:
    """A plan without its last result."""

    plan: PlanView
    stays: dict[int, Stay]
    """Of the rows that sample: a result belongs to the stay that the plan was made for."""
    touched: dict[int, int]
    """Blocks given out or written: what they hold is certain once this sub-step is answered."""
    next_sub_step: int = 0

    def uncertain(self) -> set[int]:
        """Blocks that sub-steps not answered so far give out or write to."""
        return {block for block, sub_step in self.touched.items() if sub_step >= self.next_sub_step}


@dataclass(slots=True)
class _Session:
    """What lasts as long as a session."""

    rows: dict[int, Stay] = field(default_factory=dict)
    in_flight: deque[_InFlight] = field(default_factory=deque)
    last_step_id: int = 0
    has_failed: bool = False
    void: set[int] = field(default_factory=set)
    """Blocks that plans touched which failed or were skipped."""


def verify(entries: Iterable[RecordingEntry]) -> Report:
    """Checks a recording's entries, the header first."""
    verifier = _Verifier()
    for entry in entries:
        try:
            verifier.take(entry)
        except Found as found:
            report = verifier.report
            report.fault = Fault(found.kind, report.num_sessions, verifier.step_id, found.description)
            break
    return verifier.report


class _Verifier:
    """The state between two entries. Every method raises Found at a fault."""

    def __init__(self) -> None:
        self.report = Report()
        self.step_id = 0
        self._header = RecordingHeader()
        self._executor = pb.ExecutorDescription()
        self._epochs: dict[str, int] = {}
        self._session: _Session | None = None
        self._blocks = Blocks(0, 1)

    def take(self, entry: RecordingEntry) -> None:
        self.step_id = 0
        match entry.WhichOneof("entry"):
            case "header":
                self._header = entry.header
            case "opened":
                self._open(entry.opened)
            case "lost":
                self._end_session()
            case "plan":
                self.step_id = entry.plan.step_id
                self._take_plan(self._require_session(), entry.plan)
            case "result":
                self.step_id = entry.result.step_id
                self._take_result(self._require_session(), entry.result)

    # Sessions

    def _require_session(self) -> _Session:
        if self._session is None:
            raise Found(FaultKind.OUTSIDE_SESSION, "no session is open")
        return self._session

    def _open(self, opened: pb.SessionOpened) -> None:
        self._end_session()
        self.report.num_sessions += 1
        executor, before = opened.description, self._executor
        same = executor.model_fingerprint == self._header.model_fingerprint
        if self.report.num_sessions > 1:
            same = same and executor.weights_fingerprint == before.weights_fingerprint
        require(
            same, FaultKind.OTHER_MODEL, "a fingerprint differs from the header's or an earlier session's"
        )
        last = self._epochs.get(executor.instance_id, 0)
        what = f"epoch {opened.epoch} of instance {executor.instance_id}, which had {last}"
        require(opened.epoch > last, FaultKind.BAD_EPOCH, what)
        self._epochs[executor.instance_id] = opened.epoch
        if executor.instance_id != before.instance_id:
            self._blocks = Blocks(executor.num_blocks, executor.block_size)
        self._executor, self._session = executor, _Session()

    def _end_session(self) -> None:
        """Whatever is unanswered may have run or not."""
        if self._session is not None:
            unanswered = (planned.uncertain() for planned in self._session.in_flight)
            self._blocks.forget(self._session.void.union(*unanswered))
            self._blocks.release_all()
        self._session = None

    # Plans

    def _take_plan(self, session: _Session, message: pb.StepPlan) -> None:
        self.report.num_plans += 1
        try:
            plan = PlanView.of(message)
        except ValueError as error:
            raise Found(FaultKind.BAD_PLAN, f"an array is malformed: {error}") from error
        what = f"step {plan.step_id} follows step {session.last_step_id}"
        require(plan.step_id > session.last_step_id, FaultKind.STEP_ORDER, what)
        session.last_step_id = plan.step_id
        self._check_limits(session, plan)
        for row in plan.release_rows:
            self._blocks.release(self._held(session, row))
            del session.rows[row]
        last_sub_step = plan.num_decode_steps - 1
        touched: dict[int, int] = {}
        for start in plan.starts:
            touched |= dict.fromkeys(self._start(session, start), last_sub_step)
        for row, block in zip(plan.new_block_rows, plan.new_block_ids, strict=True):
            self._blocks.give(self._held(session, row), block)
            touched[block] = last_sub_step
        for prefill in plan.prefills:
            touched |= dict.fromkeys(self._prefill(self._held(session, prefill.row), prefill), 0)
        stays = {run.row: session.rows[run.row] for run in plan.prefills if run.samples}
        prefilled = {run.row for run in plan.prefills}
        require(len(prefilled) == len(plan.prefills), FaultKind.BAD_PLAN, "a row is in two prefills")
        for row, steps in zip(plan.decode_rows, plan.decode_row_steps, strict=True):
            stay = self._held(session, row)
            twice = row in prefilled or row in stays
            require(not twice, FaultKind.BAD_PLAN, f"row {row} computes twice in one plan")
            touched |= self._decode(stay, steps, plan.num_decode_steps)
            stays[row] = stay
        # Last, since a prefix may be one that this very plan writes.
        for start in plan.starts:
            self._blocks.check_prefix(session.rows[start.row], start.num_computed_tokens)
        session.in_flight.append(_InFlight(plan, stays, touched))

    def _check_limits(self, session: _Session, plan: PlanView) -> None:
        executor, steps = self._executor, plan.num_decode_steps
        num_tokens = sum(run.num_tokens for run in plan.prefills) + len(plan.decode_rows)
        for what, value, most in (
            ("tokens", num_tokens, executor.max_num_batched_tokens),
            ("decode steps", steps, executor.max_num_decode_steps),
            ("plans in flight", len(session.in_flight) + 1, executor.max_plans_in_flight),
            ("bytes", plan.num_bytes, _MAX_PLAN_BYTES),
        ):
            require(value <= most, FaultKind.OVER_BUDGET, f"{value} {what}, at most {most} are allowed")
        alone = steps == 1 or not (plan.prefills or plan.num_masks)
        require(alone, FaultKind.OVER_BUDGET, f"{steps} decode steps beside prefills or masks")
        same = len(plan.new_block_rows) == len(plan.new_block_ids)
        same = same and len(plan.decode_rows) == len(plan.decode_row_steps)
        require(same, FaultKind.BAD_PLAN, "arrays that belong together differ in length")

    def _held(self, session: _Session, row: int) -> Stay:
        if row not in session.rows:
            raise Found(FaultKind.ROW_NOT_HELD, f"row {row} is not held")
        return session.rows[row]

    def _start(self, session: _Session, start: StartView) -> list[int]:
        """Returns the blocks that the row may write."""
        executor, row, num_known = self._executor, start.row, len(start.token_ids)
        require(row not in session.rows, FaultKind.ROW_TAKEN, f"row {row} is held")
        num_shared = start.num_computed_tokens // executor.block_size
        for what, holds in (
            ("its row is out of range", 0 <= row < executor.max_num_seqs),
            ("its number of tokens", 1 <= num_known <= executor.max_model_len),
            ("a token is not in the vocabulary", all(0 <= t < executor.vocab_size for t in start.token_ids)),
            ("its number of prompt tokens", 1 <= start.num_prompt_tokens <= num_known),
            ("its hits are not whole blocks", start.num_computed_tokens % executor.block_size == 0),
            ("its hits leave nothing to compute", 0 <= start.num_computed_tokens < num_known),
            ("its block table lacks the hits", num_shared <= len(start.block_table)),
        ):
            require(holds, FaultKind.BAD_START, f"the start of row {row}: {what}")
        stay = Stay(row, list(start.token_ids), num_known, start.num_computed_tokens, [])
        session.rows[row] = stay
        for block in start.block_table[:num_shared]:
            self._blocks.share(stay, block)
        for block in start.block_table[num_shared:]:
            self._blocks.give(stay, block)
        self.report.num_starts += 1
        self.report.num_hit_tokens += start.num_computed_tokens
        return start.block_table[num_shared:]

    def _prefill(self, stay: Stay, run: pb.Prefill) -> Iterable[int]:
        """Returns the blocks written."""
        row, end = stay.row, run.first_position + run.num_tokens
        what = f"a prefill of row {row} from position {run.first_position}, it has {stay.length}"
        require(run.first_position == stay.length, FaultKind.POSITION_GAP, what)
        what = f"a prefill of row {row} up to {end} of {stay.num_start_tokens} known tokens"
        require(stay.length < end <= stay.num_start_tokens, FaultKind.BAD_PLAN, what)
        ends = end == stay.num_start_tokens
        what = f"a prefill of row {row} says {run.samples} of whether it ends the known tokens"
        require(run.samples is ends, FaultKind.BAD_PLAN, what)
        return self._blocks.write(stay, run.num_tokens)

    def _decode(self, stay: Stay, steps: int, most: int) -> dict[int, int]:
        """Returns, by block written, the sub-step that writes it last."""
        what = f"row {stay.row} decodes {steps} of at most {most} steps"
        require(1 <= steps <= most, FaultKind.BAD_PLAN, what)
        what = f"row {stay.row} decodes with {stay.length} of {stay.num_start_tokens} tokens computed"
        require(stay.length >= stay.num_start_tokens, FaultKind.POSITION_GAP, what)
        fits = stay.length + steps <= self._executor.max_model_len
        require(fits, FaultKind.NO_SLOT, f"row {stay.row} decodes past max_model_len")
        return self._blocks.write(stay, steps)

    # Results

    def _take_result(self, session: _Session, result: pb.StepResult) -> None:
        self.report.num_results += 1
        expected = session.in_flight[0] if session.in_flight else None
        if expected is None or expected.plan.step_id != result.step_id:
            oldest = "none" if expected is None else str(expected.plan.step_id)
            raise Found(
                FaultKind.BAD_RESULT, f"step {result.step_id}, but the oldest unanswered one is {oldest}"
            )
        skipped = result.status == pb.STEP_STATUS_SKIPPED
        require(
            skipped is session.has_failed,
            FaultKind.BAD_RESULT,
            "plans are skipped behind a failed one, no others",
        )
        if result.status == pb.STEP_STATUS_FAILED:
            self._take_failure(session, result)
        elif result.status == pb.STEP_STATUS_OK:
            self._take_tokens(expected, result)
            if result.last:
                session.in_flight.popleft()
        elif skipped:
            session.void |= session.in_flight.popleft().uncertain()
        else:
            raise Found(FaultKind.BAD_RESULT, f"status {result.status} is unknown")

    def _take_failure(self, session: _Session, result: pb.StepResult) -> None:
        error = result.error
        self.report.num_failures += 1
        session.void |= session.in_flight.popleft().uncertain()
        session.has_failed = True
        blamed = error.code in _SCHEDULER_FAULTS
        require(
            not blamed,
            FaultKind.REFUSED,
            f"{error.field}: {error.description}" if error.field else error.description,
        )

    def _take_tokens(self, planned: _InFlight, result: pb.StepResult) -> None:
        sub_step, last = planned.next_sub_step, planned.next_sub_step == planned.plan.num_decode_steps - 1
        what = f"sub-step {result.sub_step} (last: {result.last}), not {sub_step} (last: {last})"
        require((result.sub_step, result.last) == (sub_step, last), FaultKind.BAD_RESULT, what)
        planned.next_sub_step += 1
        try:
            rows, tokens = unpack_int32(result.rows).tolist(), unpack_int32(result.token_ids).tolist()
            statuses = unpack_int32(result.row_statuses).tolist() or [pb.ROW_STATUS_OK] * len(rows)
        except ValueError as error:
            raise Found(FaultKind.BAD_RESULT, f"an array is malformed: {error}") from error
        asked = planned.plan.sampling_rows(sub_step)
        require(rows == asked, FaultKind.BAD_RESULT, f"rows {rows}, the plan asks for {asked}")
        same = len(rows) == len(tokens) == len(statuses)
        require(same, FaultKind.BAD_RESULT, "rows, token_ids and row_statuses differ in length")
        for row, token, status in zip(rows, tokens, statuses, strict=True):
            succeeded = status == pb.ROW_STATUS_OK
            holds = 0 <= token < self._executor.vocab_size if succeeded else token == -1
            require(holds, FaultKind.BAD_RESULT, f"row {row}: token {token} with row status {status}")
            planned.stays[row].tokens.append(token)
            self.report.num_tokens += succeeded
            self.report.num_failures += not succeeded
