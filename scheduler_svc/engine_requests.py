"""The engine's requests, from their arrival to their ends: accepted or refused, guided, aborted, failed."""

import time
from collections import Counter
from collections.abc import Callable, Iterable

from scheduler_svc import messages as msg
from scheduler_svc.admission import Admission
from scheduler_svc.core.request import Finish, Request, RequestRefused
from scheduler_svc.core.scheduler import Scheduler
from scheduler_svc.core.step import SequenceStart, StepOutputs
from scheduler_svc.errors import internal_problem
from scheduler_svc.grammars import Grammar
from scheduler_svc.guides import Compiled, Guides, MasksReady
from scheduler_svc.live_requests import LiveRequest, LiveRequests
from scheduler_svc.messages import Code, Problem, StepBatch
from scheduler_svc.tenants import Tenants
from scheduler_svc.wire import StepReport, token_batch

_NO_GUIDES = Problem(Code.UNIMPLEMENTED, "is not served here", "guided")
_WITHDRAWN = Problem(Code.UNAVAILABLE, "the request was aborted")


class Requests:
    """Belongs to the engine. `core` is None before the first session, when every request is refused."""

    def __init__(
        self, admission: Admission, publish: Callable[[msg.Event], None], guides: Guides | None
    ) -> None:
        """Events go to `publish`, in order. `guides` None: no request has a guide."""
        self.core: Scheduler | None = None
        self._admission, self._publish, self._guides = admission, publish, guides
        self._live, self._tenants = LiveRequests(), Tenants()

    def __len__(self) -> int:
        return len(self._live)

    def set_limits(self, limits: tuple[msg.TenantLimits, ...]) -> None:
        """What tenants may do from now on."""
        self._tenants.set_limits(limits, time.monotonic())

    # Beginnings

    def submit(self, command: msg.Submit) -> None:
        """Accepts or refuses a request, or has its grammar compiled first."""
        problem = self._refusal(command)
        if problem is not None:
            self._publish(msg.Refused(command.key, problem))
        elif command.request.guide is None:
            self._accept(command)
        elif self._guides is None:
            self._publish(msg.Refused(command.key, _NO_GUIDES))
        else:
            self._guides.compile(command)

    def take_compiled(self, compiled: Compiled) -> None:
        """Goes on with a request that had to wait for its grammar."""
        command, outcome = compiled.command, compiled.outcome
        if self._guides is None or not self._guides.claim(command.key):
            return
        problem = outcome if isinstance(outcome, Problem) else self._refusal(command)
        if problem is None and isinstance(outcome, Grammar):
            self._accept(command, outcome)
        elif problem is not None:
            self._publish(msg.Refused(command.key, problem))

    def take_masks(self, ready: MasksReady) -> None:
        """Lets guided sequences go on; ends those that cannot."""
        for sequence_id, mask in ready.masks.items():
            if not isinstance(mask, Problem):
                if self.core is not None:
                    self.core.set_mask(sequence_id, mask)
            else:
                self.fail_sequence(sequence_id, mask)

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
        assert self.core is not None
        request, tenant = command.request, command.tenant
        num_prompt_tokens = len(request.prompt_token_ids)
        try:
            sequence_ids = self.core.add_request(request, time.monotonic())
        except RequestRefused as error:
            problem = Problem(Code.INVALID_ARGUMENT, error.description, error.field)
            self._publish(msg.Refused(command.key, problem))
            return
        live = [sequence_id for sequence_id in sequence_ids if sequence_id in self.core.live]
        if grammar is not None and self._guides is not None:
            self._guide(live, request, grammar)
        num_tokens = num_prompt_tokens * request.n
        self._live.add(command.key, request.request_id, sequence_ids, live, num_tokens, tenant)
        self._tenants.use(tenant, num_prompt_tokens)
        self._publish(msg.Accepted(command.key, sequence_ids))

    def _guide(self, live: list[int], request: Request, grammar: Grammar) -> None:
        """Lets a guided request's sequences begin; those that have tokens, once these are followed."""
        assert self.core is not None
        assert self._guides is not None
        if request.resumed:
            known = [tokens for tokens in request.resumed if tokens is not None]
            self._guides.resume(dict(zip(live, known, strict=True)), request, grammar)
            return
        mask = self._guides.add(live, request, grammar)
        for sequence_id in live:
            self.core.set_mask(sequence_id, mask)

    def note_starts(self, starts: list[SequenceStart], step_id: int, now: float) -> None:
        """Tells of the requests that these starts of a step are the first of."""
        started = []
        for start in starts:
            request = self._live.start(start.sequence_id, start.num_preemptions)
            if request is not None:
                self._admission.add_start(now)
                started.append(msg.Started(request.key, start.num_computed_tokens))
        if started:
            self._publish(StepBatch(now, started=tuple(started), step_id=step_id))

    # Progress

    def take_masked(self, outputs: StepOutputs) -> None:
        """Begins to compute what guided sequences may sample behind their new tokens."""
        if self._guides is not None:
            self._guides.advance(outputs)

    def use_tokens(self, outputs: StepOutputs) -> None:
        """Counts new tokens against the limits of their tenants."""
        if self._tenants.counts_tokens:
            counts: Counter[str] = self._live.tenants_of(outputs.sequence_ids)
            for tenant, num_tokens in counts.items():
                self._tenants.use(tenant, num_tokens)

    def publish_outputs(self, outputs: StepOutputs, report: StepReport, now: float) -> None:
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
            self.blame(sequence_id, reason)

    # Ends

    def abort(self, command: msg.Abort) -> None:
        """Ends outputs of a request that its client wants no more."""
        request = self._live.by_key(command.key)
        if self._guides is not None and self._guides.withdraw(command.key):
            self._publish(msg.Refused(command.key, _WITHDRAWN))
        if request is not None:
            ids = request.sequence_ids
            self._end_sequences(
                request, ids if command.indices is None else [ids[i] for i in command.indices]
            )

    def give_up_all(self) -> int:
        """Ends all that is left, as a client would; returns how many requests that were."""
        num_live = len(self._live)
        for request in self._live:
            self._end_sequences(request, request.sequence_ids)
        return num_live

    def blame(self, sequence_id: int, reason: str) -> None:
        """Ends the request of a sequence that is at fault: INTERNAL, with an id that is in the log."""
        request = self._live.by_sequence(sequence_id)
        if request is not None:
            problem = internal_problem("request failed", request_id=request.request_id, reason=reason)
            self._fail(request, problem)

    def fail_sequence(self, sequence_id: int, problem: Problem) -> None:
        """Ends the request of a sequence because of a problem."""
        request = self._live.by_sequence(sequence_id)
        if request is not None:
            self._fail(request, problem)

    def fail_all(self, problem: Problem) -> None:
        """Ends all requests because of a problem."""
        self.refuse_compiling(problem)
        for request in self._live:
            self._fail(request, problem)

    def refuse_compiling(self, problem: Problem) -> None:
        """Ends the requests that wait for their grammars."""
        for key in self._guides.withdraw_all() if self._guides is not None else ():
            self._publish(msg.Refused(key, problem))

    def _end_sequences(self, request: LiveRequest, sequence_ids: Iterable[int]) -> None:
        """Ends those of a request's sequences that are live."""
        assert self.core is not None
        for sequence_id in sequence_ids:
            if sequence_id in request.live:
                self.core.abort(sequence_id)
                self._forget_guide(sequence_id)
                ended = self._live.end_sequence(sequence_id)
                if ended is not None:
                    self._publish(StepBatch(time.monotonic(), ended=(ended,)))

    def _fail(self, request: LiveRequest, problem: Problem) -> None:
        assert self.core is not None
        for sequence_id in request.live:
            self.core.abort(sequence_id)
            self._forget_guide(sequence_id)
        self._live.end(request)
        self._publish(StepBatch(time.monotonic(), ended=(msg.Failed(request.key, problem),)))

    def _forget_guide(self, sequence_id: int) -> None:
        if self._guides is not None:
            self._guides.forget(sequence_id)
