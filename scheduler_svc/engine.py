"""The engine: drains commands, plans, sends, and takes results in. It waits for nothing but its inbox.

Commands of the API come through a queue, all that have come together before the plan that they make possible. Events
of the executor link are taken in where they arrive: the executor's next plan waits for them. After either the engine
sends as many plans as the core will make, so that the executor has work queued while results travel.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import structlog

from scheduler_svc import messages as msg
from scheduler_svc.admission import Admission
from scheduler_svc.core.pacing import decode_steps_within
from scheduler_svc.core.request import Finish, RequestRefused
from scheduler_svc.core.scheduler import CoreConfig, Scheduler
from scheduler_svc.core.step import ResultMismatch, SequenceStart, Session, StepOutputs
from scheduler_svc.errors import internal_problem
from scheduler_svc.grammars import Grammar
from scheduler_svc.guides import Compiled, Guides, MasksReady
from scheduler_svc.link import (
    ExecutorAway,
    ExecutorLink,
    Fenced,
    LinkEvent,
    LinkFailed,
    SessionLost,
    SessionOpened,
)
from scheduler_svc.live_requests import LiveRequest, LiveRequests
from scheduler_svc.load import StepTimes, load_reply
from scheduler_svc.messages import Code, Problem, StepBatch
from scheduler_svc.profiler import Profiler
from scheduler_svc.tenants import Tenants
from scheduler_svc.wire import StepFailed, StepReport, token_batch

# A sequence that was in this many failed plans since its last token is taken to be at fault.
_MAX_FAILURES = 3
_UNUSABLE = Problem(Code.UNAVAILABLE, "the executor cannot be used any more")
_NO_GUIDES = Problem(Code.UNIMPLEMENTED, "is not served here", "guided")
_DRAINING = Problem(Code.UNAVAILABLE, "the server is draining")
_WITHDRAWN = Problem(Code.UNAVAILABLE, "the request was aborted")
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class EngineExit:
    """Why the engine stopped; `is_failure` says whether the process failed with it."""

    reason: str
    is_failure: bool


@dataclass(frozen=True, slots=True)
class DrainTimeout:
    """A drain has taken its time; the engine sends this to itself."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """A plan on its way; times in seconds."""

    step_id: int
    time: float
    schedule_seconds: float


@dataclass(frozen=True, slots=True)
class _Stop:
    """There is nothing more to wait for; the engine sends this to itself."""


_InboxItem = msg.Command | msg.SetLimits | DrainTimeout | Compiled | MasksReady | _Stop
Inbox = asyncio.Queue[_InboxItem]


class Engine:
    """See the module's docstring. `run` is its task; events go to `publish`, in order."""

    def __init__(
        self,
        config: CoreConfig,
        admission: Admission,
        inbox: Inbox,
        link: ExecutorLink,
        publish: Callable[[msg.Event], None],
        profiler: Profiler,
        *,
        max_plan_ms: float = 4.0,
        guides: Guides | None = None,
    ) -> None:
        """`guides` None: no request has a guide."""
        self._guides = guides
        self._max_plan_ms = max_plan_ms
        self._config, self._admission = config, admission
        self._inbox, self._link, self._publish = inbox, link, publish
        self._profiler = profiler
        self._core: Scheduler | None = None
        self._state = msg.EngineState(serving=False)
        self._live, self._tenants = LiveRequests(), Tenants()
        self._times = StepTimes()
        self._sent: deque[_Sent] = deque()
        self._epoch = 0
        """Of the open session; 0 while there is none. A new executor instance begins again at 1."""
        self._drains: list[int] = []
        """Keys of the drains to answer."""
        self._num_aborted = 0
        self._exit: EngineExit | None = None

    async def run(self) -> EngineExit:
        """Runs until the link has stopped for good or a bug shows; all live requests have an end then."""
        link = asyncio.ensure_future(self._link.run(self.take))
        self._publish(self._state)
        try:
            while self._exit is None:
                items = [await self._inbox.get()]
                items += [self._inbox.get_nowait() for _ in range(self._inbox.qsize())]
                self._turn(self._handle_command, items)
        finally:
            link.cancel()
        self._admission.has_executor = False
        self._publish_state()
        return self._exit

    def take(self, event: LinkEvent) -> None:
        """Takes in an event of the link."""
        if self._exit is None:
            self._turn(self._handle_link, [event])
            if self._exit is not None:
                self._inbox.put_nowait(_Stop())

    def _turn(self, handle: Callable[[Any], None], items: list[Any]) -> None:
        """Handles what has come, and does what that makes possible. A bug ends the engine."""
        try:
            for item in items:
                handle(item)
            self._send_plans()
            self._answer_drains()
        except Exception:
            problem = internal_problem("the engine failed")
            self._stop(EngineExit(problem.description, is_failure=True), problem)

    def _stop(self, reason: EngineExit, problem: Problem) -> None:
        """Ends the engine: nothing is accepted or sent any more, and all that is live ends with the problem."""
        self._exit, self._epoch = reason, 0
        self._admission.has_executor = False
        try:
            self._fail_all(problem)
        except Exception:  # of a core that has failed before: the process must end nevertheless
            internal_problem("requests were not ended")

    def _handle_command(self, item: _InboxItem) -> None:
        match item:
            case msg.Submit():
                self._submit(item)
            case msg.Abort():
                self._abort(item)
            case msg.LoadQuery():
                self._publish(self._load(item.key))
            case msg.ResetPrefixCache():
                num_blocks = self._core.reset_prefix_cache() if self._core else 0
                self._publish(msg.PrefixCacheReset(item.key, num_blocks))
            case msg.Drain():
                self._drain(item)
            case msg.SetLimits():
                self._tenants.set_limits(item.limits, time.monotonic())
            case msg.StartProfile() | msg.StopProfile():
                self._profiler.handle(item, self._sent[-1].step_id if self._sent else 0)
            case Compiled():
                self._take_compiled(item)
            case MasksReady():
                self._take_masks(item)
            case DrainTimeout():
                self._give_up_all()

    # Requests

    def _submit(self, command: msg.Submit) -> None:
        problem = self._refusal(command)
        if problem is not None:
            self._publish(msg.Refused(command.key, problem))
        elif command.request.guide is None:
            self._accept(command)
        elif self._guides is None:
            self._publish(msg.Refused(command.key, _NO_GUIDES))
        else:
            self._guides.compile(command)

    def _take_compiled(self, compiled: Compiled) -> None:
        """Goes on with a request that had to wait for its grammar."""
        command, outcome = compiled.command, compiled.outcome
        if self._guides is None or not self._guides.claim(command.key):
            return
        problem = outcome if isinstance(outcome, Problem) else self._refusal(command)
        if problem is None and isinstance(outcome, Grammar):
            self._accept(command, outcome)
        elif problem is not None:
            self._publish(msg.Refused(command.key, problem))

    def _take_masks(self, ready: MasksReady) -> None:
        """Lets guided sequences go on; ends those that cannot."""
        for sequence_id, mask in ready.masks.items():
            if not isinstance(mask, Problem):
                if self._core is not None:
                    self._core.set_mask(sequence_id, mask)
            elif (request := self._live.by_sequence(sequence_id)) is not None:
                self._fail(request, mask)

    def _refusal(self, command: msg.Submit) -> Problem | None:
        """Why a request is not accepted at the moment."""
        request, live, tenant = command.request, self._live, command.tenant
        num_tokens = len(request.prompt_token_ids) * request.n
        problem = self._admission.refusal(live.num_waiting, live.num_waiting_tokens, num_tokens)
        num_compiling = self._guides.num_compiling(tenant) if self._guides is not None else 0
        num_under_way = live.num_of(tenant) + num_compiling
        problem = problem or self._tenants.refusal(tenant, num_under_way, time.monotonic())
        if live.has_id(tenant, request.request_id):
            problem = Problem(Code.ALREADY_EXISTS, "a live request has this id", "request_id")
        return problem

    def _accept(self, command: msg.Submit, grammar: Grammar | None = None) -> None:
        """Takes in a request that is not refused; `grammar` is that of its guide."""
        assert self._core is not None
        request, tenant = command.request, command.tenant
        num_prompt_tokens = len(request.prompt_token_ids)
        try:
            sequence_ids = self._core.add_request(request, time.monotonic())
        except RequestRefused as error:
            problem = Problem(Code.INVALID_ARGUMENT, error.description, error.field)
            self._publish(msg.Refused(command.key, problem))
            return
        if grammar is not None and self._guides is not None:
            mask = self._guides.add(sequence_ids, request, grammar)
            for sequence_id in sequence_ids:
                self._core.set_mask(sequence_id, mask)
        num_tokens = num_prompt_tokens * request.n
        self._live.add(command.key, request.request_id, sequence_ids, num_tokens, tenant)
        self._tenants.use(tenant, num_prompt_tokens)
        self._publish(msg.Accepted(command.key, sequence_ids))

    def _abort(self, command: msg.Abort) -> None:
        request = self._live.by_key(command.key)
        if self._guides is not None and self._guides.withdraw(command.key):
            self._publish(msg.Refused(command.key, _WITHDRAWN))
        if request is not None:
            ids = request.sequence_ids
            self._end_sequences(
                request, ids if command.indices is None else [ids[i] for i in command.indices]
            )

    def _end_sequences(self, request: LiveRequest, sequence_ids: Iterable[int]) -> None:
        """Ends those of a request's sequences that are live."""
        assert self._core is not None
        for sequence_id in sequence_ids:
            if sequence_id in request.live:
                self._core.abort(sequence_id)
                self._forget_guide(sequence_id)
                ended = self._live.end_sequence(sequence_id)
                if ended is not None:
                    self._publish(StepBatch(time.monotonic(), ended=(ended,)))

    def _fail(self, request: LiveRequest, problem: Problem) -> None:
        """Ends a request because of a problem."""
        assert self._core is not None
        for sequence_id in request.live:
            self._core.abort(sequence_id)
            self._forget_guide(sequence_id)
        self._live.end(request)
        self._publish(StepBatch(time.monotonic(), ended=(msg.Failed(request.key, problem),)))

    def _forget_guide(self, sequence_id: int) -> None:
        if self._guides is not None:
            self._guides.forget(sequence_id)

    def _fail_all(self, problem: Problem) -> None:
        self._refuse_compiling(problem)
        for request in self._live:
            self._fail(request, problem)

    def _refuse_compiling(self, problem: Problem) -> None:
        """Ends the requests that wait for their grammars."""
        for key in self._guides.withdraw_all() if self._guides is not None else ():
            self._publish(msg.Refused(key, problem))

    # Operations

    def _load(self, key: int) -> msg.LoadReply:
        stats = self._core.stats() if self._core is not None else None
        draining = self._admission.is_draining
        return load_reply(key, stats, self._times, epoch=self._epoch, draining=draining)

    def _drain(self, command: msg.Drain) -> None:
        self._admission.is_draining = True
        self._publish_state()
        self._refuse_compiling(_DRAINING)
        self._drains.append(command.key)
        if command.timeout_seconds is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(command.timeout_seconds, self._inbox.put_nowait, DrainTimeout())

    def _give_up_all(self) -> None:
        self._num_aborted += len(self._live)
        for request in self._live:
            self._end_sequences(request, request.sequence_ids)

    def _answer_drains(self) -> None:
        if self._drains and not len(self._live):
            for key in self._drains:
                self._publish(msg.Drained(key, self._num_aborted))
            self._drains.clear()

    def _publish_state(self, **changes: Any) -> None:
        """Tells what the engine can do, where that has changed."""
        state = replace(self._state, serving=self._admission.is_open, **changes)
        if state != self._state:
            self._state = state
            self._publish(state)

    # Steps

    def _send_plans(self) -> None:
        while self._send_plan():
            pass

    def _send_plan(self, num_answered: int = 0) -> bool:
        """Sends the next plan, if there is one; see Scheduler.schedule."""
        if self._core is None or not self._epoch:
            return False
        began = time.monotonic()
        plan = self._core.schedule(began, self._num_decode_steps(), num_answered)
        if plan is None:
            return False
        spans = self._profiler.spans
        if spans is not None:
            spans.planned(self._epoch, plan.step_id, began)
        self._link.send(plan)
        now = time.monotonic()
        if spans is not None:
            spans.sent(plan.step_id, now)
        self._sent.append(_Sent(plan.step_id, now, now - began))
        if plan.starts:
            self._note_starts(plan.starts, plan.step_id, now)
        return True

    def _num_decode_steps(self) -> int:
        """Decode steps a plan: as many as keep all plans in flight within --max-plan-ms, which arrivals wait for."""
        return decode_steps_within(self._max_plan_ms, self._config.pipeline_depth, self._times.device_ms())

    def _note_starts(self, starts: list[SequenceStart], step_id: int, now: float) -> None:
        started = []
        for start in starts:
            request = self._live.start(start.sequence_id, start.num_preemptions)
            if request is not None:
                self._admission.add_start(now)
                started.append(msg.Started(request.key, start.num_computed_tokens))
        if started:
            self._publish(StepBatch(now, started=tuple(started), step_id=step_id))

    def _take_result(self, report: StepReport) -> None:
        if self._core is None or not self._epoch:
            return  # of a session that is being given up
        began, last = time.monotonic(), report.result.last
        try:
            # The executor waits for plans: the next one goes out first where the result cannot matter to it.
            if not self._core.changes_plans(report.result):
                self._send_plan(num_answered=int(last))
        except ResultMismatch as error:
            step_id = self._sent[0].step_id if self._sent else 0
            self._take_failure(StepFailed(step_id, "MISMATCH", "", str(error), ()))
            return
        resumed, sent = time.monotonic(), self._sent[0]
        outputs = self._core.update(report.result, began)
        if last:
            self._sent.popleft()
        update_seconds = time.monotonic() - resumed
        if self._guides is not None:
            self._guides.advance(outputs)
        self._times.add(report.timing, began - sent.time, sent.schedule_seconds + update_seconds)
        # Streams for a millisecond more or less do not matter.
        self._send_plans()
        self._core.settle()
        self._live.advance(outputs.sequence_ids)
        if self._tenants.counts_tokens:
            for tenant, num_tokens in self._live.tenants_of(outputs.sequence_ids).items():
                self._tenants.use(tenant, num_tokens)
        spans, epoch = self._profiler.spans, self._epoch
        if spans is not None:
            spans.updated(epoch, report.result, resumed, resumed + update_seconds)
        self._publish_outputs(outputs, report, began)
        if spans is not None:
            spans.published(epoch, report.result, began)

    def _publish_outputs(self, outputs: StepOutputs, report: StepReport, now: float) -> None:
        """Tells of new tokens and of the ends they bring."""
        ended, failed = [], []
        for index in outputs.finishes.nonzero()[0].tolist():
            sequence_id = int(outputs.sequence_ids[index])
            self._forget_guide(sequence_id)
            if outputs.finishes[index] == Finish.FAILED:
                row = int(report.result.rows[outputs.result_indices[index]])
                failed.append((sequence_id, report.row_errors.get(row, "UNKNOWN")))
            elif (end := self._live.end_sequence(sequence_id)) is not None:
                ended.append(end)
        if len(outputs.sequence_ids) or outputs.prompt_slices:
            tokens, step_id = token_batch(outputs, report), report.result.step_id
            self._publish(StepBatch(now, tokens=tokens, ended=tuple(ended), step_id=step_id))
        for sequence_id, reason in failed:
            self._fail_sequence(sequence_id, reason)

    # Failures

    def _take_failure(self, failed: StepFailed) -> None:
        """A step failed: who is at fault ends, all others go on in a new session."""
        if self._core is None or not self._epoch:
            return
        reason = f"{failed.field}: {failed.description}" if failed.field else failed.description
        _log.error("step failed", step_id=failed.step_id, code=failed.code, reason=reason, rows=failed.rows)
        for sequence_id in self._core.blame(failed.step_id, list(failed.rows)):
            if failed.rows or self._live.add_failure(sequence_id) >= _MAX_FAILURES:
                self._fail_sequence(sequence_id, reason)
        if failed.code == "DATA_LOSS":
            self._core.reset_prefix_cache()  # what was found wrong must not be hit again
        self._epoch = 0
        self._link.abandon()

    def _fail_sequence(self, sequence_id: int, reason: str) -> None:
        request = self._live.by_sequence(sequence_id)
        if request is not None:
            self._fail(
                request, internal_problem("request failed", request_id=request.request_id, reason=reason)
            )

    # The link

    def _handle_link(self, event: LinkEvent) -> None:
        match event:
            case StepReport():
                self._take_result(event)
            case StepFailed():
                self._take_failure(event)
            case SessionOpened():
                self._open(event)
            case SessionLost():
                self._epoch = 0
                _log.warning("executor session lost", reason=event.reason)
            case ExecutorAway() if self._core is None:
                reason = EngineExit(f"--executor: {event.reason}", is_failure=True)
                self._stop(reason, Problem(Code.UNAVAILABLE, "there is no executor"))
            case ExecutorAway():
                _log.error("executor away for too long", reason=event.reason)
                self._admission.has_executor = False
                self._publish_state()
                self._fail_all(Problem(Code.UNAVAILABLE, "the executor has been away for too long"))
            case Fenced():
                reason = EngineExit(f"another scheduler has taken over ({event.reason})", is_failure=False)
                self._stop(reason, Problem(Code.UNAVAILABLE, "another scheduler has taken over"))
            case LinkFailed():
                self._stop(EngineExit(event.reason, is_failure=True), _UNUSABLE)

    def _open(self, event: SessionOpened) -> None:
        """Goes on, or begins, with a new session."""
        session, now = event.session, time.monotonic()
        try:
            if self._guides is not None:
                self._guides.prepare(session.vocab_size)
            if self._core is None:
                self._core = Scheduler(self._config, session)
                lost = []
            else:
                lost = self._core.reset(session, now)
        except ValueError as error:
            self._stop(EngineExit(str(error), is_failure=True), _UNUSABLE)
            return
        for sequence_id in lost:
            request = self._live.by_sequence(sequence_id)
            if request is not None:
                description = "the executor came back with too small a KV cache for this request"
                self._fail(request, Problem(Code.RESOURCE_EXHAUSTED, description))
        self._sent.clear()
        self._epoch = event.epoch
        self._admission.has_executor = True
        self._publish_state(
            max_model_len=self._core.max_model_len,
            vocab_size=session.vocab_size,
            weights_fingerprint=event.weights_fingerprint,
        )
        _log.info("executor session open", epoch=event.epoch, instance=session.instance_id, **_sizes(session))


def _sizes(session: Session) -> dict[str, int]:
    return {
        "num_blocks": session.num_blocks,
        "block_size": session.block_size,
        "max_num_seqs": session.max_num_seqs,
        "max_model_len": session.max_model_len,
    }
