"""The engine: drains commands, plans, sends, and takes results in. It waits for nothing but its inbox.

Commands of the API come through a queue, all that have come together before the plan that they make possible. Events
of the executor link are taken in where they arrive: the executor's next plan waits for them. After either the engine
sends as many plans as the core will make, so that the executor has work queued while results travel.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import structlog

from nanoserve.step_limits import TICK_SECONDS
from scheduler_svc import messages as msg
from scheduler_svc.admission import Admission
from scheduler_svc.core.pacing import decode_steps_within
from scheduler_svc.core.scheduler import CoreConfig, Scheduler
from scheduler_svc.core.step import ResultMismatch, Session
from scheduler_svc.engine_requests import Requests
from scheduler_svc.errors import internal_problem
from scheduler_svc.failures import Failures, SentPlan
from scheduler_svc.guides import Compiled, Guides, MasksReady
from scheduler_svc.link import ExecutorLink
from scheduler_svc.link_events import (
    ExecutorAway,
    Fenced,
    LinkEvent,
    LinkFailed,
    SessionLost,
    SessionOpened,
)
from scheduler_svc.load import StepTimes, load_reply
from scheduler_svc.messages import Code, Problem
from scheduler_svc.profiler import Profiler
from scheduler_svc.switch import Switch, SwitchPrepared
from scheduler_svc.wire import StepFailed, StepReport

_UNUSABLE = Problem(Code.UNAVAILABLE, "the executor cannot be used any more")
_DRAINING = Problem(Code.UNAVAILABLE, "the server is draining")
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
class GraceOver:
    """The executor has been away for so long that nobody should send requests here; sent by the engine to itself."""


@dataclass(frozen=True, slots=True)
class _Stop:
    """There is nothing more to wait for; the engine sends this to itself."""


_InboxItem = (
    msg.Command | msg.SetLimits | DrainTimeout | GraceOver | SwitchPrepared | Compiled | MasksReady | _Stop
)
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
        loss_grace: float = 5.0,
        guides: Guides | None = None,
    ) -> None:
        """`loss_grace`: seconds without an executor in which requests are accepted still.

        `guides` None: no request has a guide.
        """
        self._guides, self._requests = guides, Requests(admission, publish, guides)
        self._max_plan_ms, self._loss_grace = max_plan_ms, loss_grace
        self._config, self._admission = config, admission
        self._inbox, self._link, self._publish = inbox, link, publish
        self._profiler = profiler
        self._switch = Switch(link, publish, inbox.put_nowait)
        self._core: Scheduler | None = None
        self._failures: Failures | None = None
        self._state = msg.EngineState(serving=False)
        self._times = StepTimes()
        self._sent: deque[SentPlan] = deque()
        self._grace: asyncio.TimerHandle | None = None
        self._epoch = 0
        """Of the open session; 0 while there is none. A new executor instance begins again at 1."""
        self._drains: list[int] = []
        """Keys of the drains to answer."""
        self._num_aborted = 0
        self._exit: EngineExit | None = None

    async def run(self) -> EngineExit:
        """Runs until the link has stopped for good or a bug shows; all live requests have an end then."""
        link = asyncio.ensure_future(self._link.run(self.take))
        watch = asyncio.ensure_future(self._watch())
        self._publish(self._state)
        try:
            while self._exit is None:
                items = [await self._inbox.get()]
                items += [self._inbox.get_nowait() for _ in range(self._inbox.qsize())]
                self._turn(self._handle_command, items)
        finally:
            link.cancel()
            watch.cancel()
            self._end_grace()
            self._switch.close()
        self._admission.has_executor = False
        self._publish_state()
        return self._exit

    def take(self, event: LinkEvent) -> None:
        """Takes in an event of the link."""
        if self._exit is None:
            self._turn(self._handle_link, [event])

    def _turn(self, handle: Callable[[Any], None], items: list[Any]) -> None:
        """Handles what has come, and does what that makes possible. A bug ends the engine."""
        try:
            for item in items:
                handle(item)
            self._send_plans()
            self._hand_over()
            self._answer_drains()
        except Exception:
            problem = internal_problem("the engine failed")
            self._stop(EngineExit(problem.description, is_failure=True), problem)

    def _stop(self, reason: EngineExit, problem: Problem) -> None:
        """Ends the engine: nothing is accepted or sent any more, and all that is live ends with the problem."""
        self._exit, self._epoch = reason, 0
        self._inbox.put_nowait(_Stop())  # `run` may wait for it
        self._admission.has_executor = False
        try:
            self._requests.fail_all(problem)
        except Exception:  # of a core that has failed before: the process must end nevertheless
            internal_problem("requests were not ended")

    def _handle_command(self, item: _InboxItem) -> None:
        match item:
            case msg.Submit():
                self._requests.submit(item)
            case msg.Abort():
                self._requests.abort(item)
            case msg.LoadQuery():
                self._publish(self._load(item.key))
            case msg.ResetPrefixCache():
                num_blocks = self._core.reset_prefix_cache() if self._core else 0
                self._publish(msg.PrefixCacheReset(item.key, num_blocks))
            case msg.Drain():
                self._drain(item)
            case msg.SetLimits():
                self._requests.set_limits(item.limits)
            case msg.StartProfile() | msg.StopProfile():
                self._profiler.handle(item, self._sent[-1].step_id if self._sent else 0)
            case Compiled():
                self._requests.take_compiled(item)
            case MasksReady():
                self._requests.take_masks(item)
            case msg.SwitchExecutor():
                self._switch.begin(item)
            case SwitchPrepared():
                self._switch.take(item.outcome, self._core)
            case DrainTimeout():
                self._num_aborted += self._requests.give_up_all()
            case GraceOver() if not self._epoch:
                _log.warning("no executor", grace_seconds=self._loss_grace)
                self._admission.has_executor = False
                self._publish_state()

    # Operations

    def _load(self, key: int) -> msg.LoadReply:
        stats = self._core.stats() if self._core is not None else None
        draining = self._admission.is_draining
        return load_reply(key, stats, self._times, epoch=self._epoch, draining=draining)

    def _drain(self, command: msg.Drain) -> None:
        self._admission.is_draining = True
        self._publish_state()
        self._requests.refuse_compiling(_DRAINING)
        self._drains.append(command.key)
        if command.timeout_seconds is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(command.timeout_seconds, self._inbox.put_nowait, DrainTimeout())

    def _hand_over(self) -> None:
        """Changes the executor where that is wanted, and the present one has no plan left to answer, or is away."""
        if self._switch.prepared is None or (self._epoch and self._sent):
            return
        if self._failures is not None and self._epoch:
            self._failures.recovery.left(time.monotonic())
        self._epoch = 0
        access = self._switch.hand_over()
        self._profiler.switch(access)
        _log.info("executor switched", executor=access.address)

    def _answer_drains(self) -> None:
        if self._drains and not len(self._requests):
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
        if self._failures is None or not self._epoch or self._switch.prepared is not None:
            return False
        began = time.monotonic()
        plan = self._failures.recovery.schedule(began, self._num_decode_steps(), num_answered)
        if plan is None:
            return False
        spans = self._profiler.spans
        if spans is not None:
            spans.planned(self._epoch, plan.step_id, began)
        self._link.send(plan)
        now = time.monotonic()
        if spans is not None:
            spans.sent(plan.step_id, now)
        self._sent.append(SentPlan.of(plan, began, now))
        if plan.starts:
            self._requests.note_starts(plan.starts, plan.step_id, now)
        return True

    def _num_decode_steps(self) -> int:
        """Decode steps a plan: as many as keep all plans in flight within --max-plan-ms, which arrivals wait for."""
        return decode_steps_within(self._max_plan_ms, self._config.pipeline_depth, self._times.device_ms())

    def _take_result(self, report: StepReport) -> None:
        if self._core is None or self._failures is None or not self._epoch:
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
        self._failures.answered(sent, began, last=last)
        self._failures.recovery.updated(outputs)
        self._requests.take_masked(outputs)
        self._times.add(report.timing, began - sent.time, sent.schedule_seconds + update_seconds)
        # Streams for a millisecond more or less do not matter.
        self._send_plans()
        self._core.settle()
        self._requests.use_tokens(outputs)
        spans, epoch = self._profiler.spans, self._epoch
        if spans is not None:
            spans.updated(epoch, report.result, resumed, resumed + update_seconds)
        self._requests.publish_outputs(outputs, report, began)
        if spans is not None:
            spans.published(epoch, report.result, began)

    # Failures

    async def _watch(self) -> None:
        """Gives a session up whose oldest plan takes too long, for ever."""
        before = time.monotonic()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            before, elapsed = time.monotonic(), time.monotonic() - before
            self._turn(self._check_oldest, [elapsed])

    def _check_oldest(self, elapsed_seconds: float) -> None:
        if self._failures is None or not self._epoch:
            return
        reason = self._failures.tick(self._sent[0] if self._sent else None, elapsed_seconds)
        if reason is not None:
            _log.error("step overdue", reason=reason)
            self._failures.session_lost(reason)
            self._give_up_session()

    def _take_failure(self, failed: StepFailed) -> None:
        """A step failed: who is at fault ends, all others go on in a new session."""
        if self._failures is not None and self._epoch:
            self._failures.step_failed(failed)
            self._give_up_session()

    def _give_up_session(self) -> None:
        self._epoch = 0
        self._link.abandon()

    def _lose(self, reason: str) -> None:
        """There is no session any more, for a while."""
        _log.warning("executor session lost", reason=reason)
        if self._failures is not None and self._epoch:
            self._failures.session_lost(reason)
        self._epoch = 0
        self._end_grace()
        loop = asyncio.get_running_loop()
        self._grace = loop.call_later(self._loss_grace, self._inbox.put_nowait, GraceOver())

    def _end_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()

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
                self._lose(event.reason)
            case ExecutorAway() if self._core is None:
                reason = EngineExit(f"--executor: {event.reason}", is_failure=True)
                self._stop(reason, Problem(Code.UNAVAILABLE, "there is no executor"))
            case ExecutorAway():
                _log.error("executor away for too long", reason=event.reason)
                self._admission.has_executor = False
                self._publish_state()
                self._requests.fail_all(Problem(Code.UNAVAILABLE, "the executor has been away for too long"))
            case Fenced():
                reason = EngineExit(f"another scheduler has taken over ({event.reason})", is_failure=False)
                self._stop(reason, Problem(Code.UNAVAILABLE, "another scheduler has taken over"))
            case LinkFailed():
                self._stop(EngineExit(event.reason, is_failure=True), _UNUSABLE)

    def _open(self, event: SessionOpened) -> None:
        """Goes on, or begins, with a new session."""
        session = event.session
        try:
            if self._guides is not None:
                self._guides.prepare(session.vocab_size)
            if self._core is None or self._failures is None:
                self._core = self._requests.core = Scheduler(self._config, session)
                self._failures = Failures(self._core, self._requests)
            else:
                self._failures.reset(session)
        except ValueError as error:
            self._stop(EngineExit(str(error), is_failure=True), _UNUSABLE)
            return
        self._end_grace()
        self._sent.clear()
        self._epoch = event.epoch
        self._switch.opened(event.epoch)
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
