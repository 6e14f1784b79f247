"""The engine's guided sequences: grammars compiled and masks computed in threads, never on the engine's loop."""

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from scheduler_svc import messages as msg
from scheduler_svc.core.masks import TokenMask
from scheduler_svc.core.request import Finish, Int32Array, Request
from scheduler_svc.core.step import StepOutputs
from scheduler_svc.errors import internal_problem
from scheduler_svc.grammar_store import GrammarStore
from scheduler_svc.grammars import (
    Followers,
    Grammar,
    GrammarError,
    has_any,
    large_stack_thread,
    next_tokens,
)
from scheduler_svc.messages import Code, Problem

if TYPE_CHECKING:
    from llguidance import LLMatcher

# How long a guide may wait for its turn and be compiled, and how many requests may wait.
_MAX_WAIT_SECONDS = 10.0
_MAX_COMPILING = 256
# Many times what a mask takes, alone and among others.
_SLOW_SECONDS = 2e-3
_SLOW_TOGETHER_SECONDS, _SLOW_SECONDS_EACH = 20e-3, 0.2e-3
# Of fewer, each is sooner done by itself.
_MIN_TOGETHER = 4
_MAX_FOLLOWER_THREADS = 8


@dataclass(frozen=True, slots=True)
class Compiled:
    """A request's guide is compiled, or cannot be."""

    command: msg.Submit
    outcome: Grammar | Problem


@dataclass(frozen=True, slots=True)
class MasksReady:
    """What guided sequences may sample next, by sequence id; a Problem for one that cannot go on."""

    masks: dict[int, TokenMask | Problem]


@dataclass(slots=True)
class _GuidedSequence:
    """How far a sequence has got in its grammar. Touched by one thread at a time: its masks come one by one."""

    request: Request
    matcher: "LLMatcher"
    num_tokens: int = 0
    is_slow: bool = False
    """Whether its last mask took so long that those of others must not wait for its next."""

    def mask(self, bits: bytes, vocab_size: int) -> TokenMask:
        """The mask of tokens that the grammar allows; below min_tokens no end, unless there is nothing else."""
        if self.num_tokens < self.request.min_tokens:
            without = bytearray(bits)
            for token_id in self.request.end_token_ids:
                without[token_id // 8] &= ~(1 << token_id % 8)
            if has_any(without):
                bits = bytes(without)
        return TokenMask.smallest(bits, vocab_size)

    def advance(self, token_id: int, vocab_size: int) -> TokenMask | Problem:
        """Takes in a sampled token; returns what may come next."""
        begun = time.thread_time()  # what the interpreter or a processor was waited for is not the grammar's
        self.matcher.consume_token(token_id)
        bits: bytes | GrammarError
        try:
            bits = next_tokens(self.matcher, vocab_size)
        except GrammarError as error:
            bits = error
        self.is_slow = time.thread_time() - begun > _SLOW_SECONDS
        return self.advanced(bits, vocab_size)

    def advanced(self, bits: bytes | GrammarError, vocab_size: int) -> TokenMask | Problem:
        """The matcher has taken in a sampled token; returns the mask of what may come next."""
        self.num_tokens += 1
        if isinstance(bits, bytes):
            return self.mask(bits, vocab_size)
        description = f"the guide could not be followed any further: {bits}"
        return Problem(Code.RESOURCE_EXHAUSTED, description, f"guided.{_kind(self.request)}")

    def resume(self, token_ids: Int32Array, vocab_size: int) -> TokenMask | Problem:
        """Takes in the tokens of a request that is resumed; returns the mask of what may come next."""
        self.num_tokens = len(token_ids)
        for token_id in token_ids.tolist():
            self.matcher.consume_token(token_id)
        try:
            return self.mask(next_tokens(self.matcher, vocab_size), vocab_size)
        except GrammarError as error:
            rule = f"are not what guided.{_kind(self.request)} allows: {error}"
            return Problem(Code.INVALID_ARGUMENT, rule, "resume.outputs")


_Step = tuple[int, _GuidedSequence, int]
"""A sequence's id, the sequence, and the token that it has sampled."""
_Masks = dict[int, TokenMask | Problem]


@dataclass(slots=True)
class Guides:
    """See the module's docstring. `post` gets Compiled and MasksReady, on the loop."""

    grammars: GrammarStore
    post: Callable[[Compiled | MasksReady], None]
    _vocab_size: int = 0
    _compiling: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    """By the key of the request."""
    _tenants: dict[int, str] = field(default_factory=dict)
    """Whose those requests are."""
    _sequences: dict[int, _GuidedSequence] = field(default_factory=dict)
    _mask_thread: ThreadPoolExecutor = field(default_factory=lambda: large_stack_thread("token-masks"))
    _slow_mask_thread: ThreadPoolExecutor = field(
        default_factory=lambda: large_stack_thread("slow-token-masks")
    )
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def prepare(self, vocab_size: int) -> None:
        """Begins to make ready for guides."""
        self._vocab_size = vocab_size
        self.grammars.prepare(vocab_size)

    async def close(self) -> None:
        """Gives up what is being compiled or computed."""
        for task in (*self._compiling.values(), *self._tasks):
            task.cancel()
        for threads in (self._mask_thread, self._slow_mask_thread):
            threads.shutdown(wait=False, cancel_futures=True)
        await self.grammars.close()

    # Compiling

    def compile(self, command: msg.Submit) -> None:
        """Begins to compile the guide of a request; Compiled tells the outcome."""
        work = self._compile if len(self._compiling) < _MAX_COMPILING else self._refuse
        self._compiling[command.key] = asyncio.ensure_future(work(command))
        self._tenants[command.key] = command.tenant

    def num_compiling(self, tenant: str) -> int:
        """How many requests of a tenant wait for their grammars."""
        return sum(other == tenant for other in self._tenants.values())

    def claim(self, key: int) -> bool:
        """Takes what Compiled tells of a request; False where the request was withdrawn before."""
        self._tenants.pop(key, None)
        return self._compiling.pop(key, None) is not None

    def withdraw(self, key: int) -> bool:
        """Gives up compiling for a request; False where it was not compiling."""
        task = self._compiling.get(key)
        if task is not None:
            task.cancel()
        return self.claim(key)

    def withdraw_all(self) -> list[int]:
        """Gives up compiling; returns the keys of the requests that wait for it."""
        return [key for key in list(self._compiling) if self.withdraw(key)]

    async def _compile(self, command: msg.Submit) -> None:
        guide = command.request.guide
        assert guide is not None
        field_name = f"guided.{guide.kind}"
        outcome: Grammar | Problem
        try:
            outcome = await asyncio.wait_for(self.grammars.get(guide), _MAX_WAIT_SECONDS)
        except GrammarError as error:
            outcome = Problem(Code.INVALID_ARGUMENT, str(error), field_name)
        except TimeoutError:
            outcome = Problem(Code.RESOURCE_EXHAUSTED, "other grammars are being compiled", field_name, 1.0)
        except Exception:
            outcome = internal_problem("a grammar was not compiled")
        self.post(Compiled(command, outcome))

    async def _refuse(self, command: msg.Submit) -> None:
        problem = Problem(Code.RESOURCE_EXHAUSTED, "too many grammars are being compiled", "guided", 1.0)
        self.post(Compiled(command, problem))

    # Following

    def add(self, sequence_ids: Sequence[int], request: Request, grammar: Grammar) -> TokenMask:
        """Takes in a request's sequences; returns the mask of the first token of each."""
        for sequence_id in sequence_ids:
            self._sequences[sequence_id] = _GuidedSequence(request, grammar.matcher.deep_copy())
        return self._sequences[sequence_ids[0]].mask(grammar.bits, self._vocab_size)

    def resume(self, known: Mapping[int, Int32Array], request: Request, grammar: Grammar) -> None:
        """Takes in a request's sequences, each with the tokens that it has; MasksReady tells what may come next."""
        self.add(list(known), request, grammar)
        resumed = [
            (sequence_id, self._sequences[sequence_id], tokens) for sequence_id, tokens in known.items()
        ]
        self._begin(self._slow_mask_thread, _resume_each, resumed)

    def forget(self, sequence_id: int) -> None:
        """A sequence has ended; nothing where it is not guided."""
        self._sequences.pop(sequence_id, None)

    def advance(self, outputs: StepOutputs) -> None:
        """Begins to compute the masks behind the tokens of guided sequences that go on; MasksReady tells them."""
        if not self._sequences:
            return
        steps = [
            (sequence_id, self._sequences[sequence_id], token_id)
            for sequence_id, token_id, finish in zip(
                outputs.sequence_ids.tolist(),
                outputs.token_ids.tolist(),
                outputs.finishes.tolist(),
                strict=True,
            )
            if finish == Finish.NONE and sequence_id in self._sequences
        ]
        slow = [step for step in steps if step[1].is_slow]
        quick = [step for step in steps if not step[1].is_slow] if slow else steps
        for thread, some in ((self._mask_thread, quick), (self._slow_mask_thread, slow)):
            if some:
                apart = thread is self._slow_mask_thread or len(some) < _MIN_TOGETHER
                self._begin(thread, _advance_each if apart else _advance_together, some)

    def _begin(
        self, thread: ThreadPoolExecutor, work: Callable[[Any, int], _Masks], steps: Sequence[Any]
    ) -> None:
        task = asyncio.ensure_future(self._compute(thread, work, steps))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _compute(
        self, thread: ThreadPoolExecutor, work: Callable[[Any, int], _Masks], steps: Sequence[Any]
    ) -> None:
        """Has a thread work on steps, each of which begins with a sequence's id."""
        loop = asyncio.get_running_loop()
        try:
            masks = await loop.run_in_executor(thread, work, steps, self._vocab_size)
        except Exception:
            problem = internal_problem("masks were not computed")
            masks = {step[0]: problem for step in steps}
        for sequence_id, sequence, _ in steps:
            if isinstance(masks[sequence_id], Problem) and sequence.request.guide is not None:
                self.grammars.forget(sequence.request.guide)
        self.post(MasksReady(masks))


def _resume_each(steps: list[tuple[int, _GuidedSequence, Int32Array]], vocab_size: int) -> _Masks:
    return {sequence_id: sequence.resume(tokens, vocab_size) for sequence_id, sequence, tokens in steps}


def _advance_each(steps: list[_Step], vocab_size: int) -> _Masks:
    return {sequence_id: sequence.advance(token_id, vocab_size) for sequence_id, sequence, token_id in steps}


def _advance_together(steps: list[_Step], vocab_size: int) -> _Masks:
    begun = time.perf_counter()
    matchers = [sequence.matcher for _, sequence, _ in steps]
    found = _followers().advance(matchers, [token_id for _, _, token_id in steps], vocab_size)
    if time.perf_counter() - begun > _SLOW_TOGETHER_SECONDS + _SLOW_SECONDS_EACH * len(steps):
        # Whichever it was: each is timed alone in its next step, and those that are quick come back.
        for _, sequence, _ in steps:
            sequence.is_slow = True
    return {
        sequence_id: sequence.advanced(bits, vocab_size)
        for (sequence_id, sequence, _), bits in zip(steps, found, strict=True)
    }


@cache
def _followers() -> Followers:
    return Followers(min(_MAX_FOLLOWER_THREADS, len(os.sched_getaffinity(0))))


def _kind(request: Request) -> str:
    return request.guide.kind if request.guide is not None else ""
