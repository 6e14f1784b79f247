"""The engine's guided sequences: grammars compiled and masks computed in threads, never on the engine's loop."""

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scheduler_svc import messages as msg
from scheduler_svc.core.masks import TokenMask
from scheduler_svc.core.request import Finish, Request
from scheduler_svc.core.step import StepOutputs
from scheduler_svc.errors import internal_problem
from scheduler_svc.grammar_store import GrammarStore
from scheduler_svc.grammars import Grammar, GrammarError, large_stack_threads, next_tokens
from scheduler_svc.messages import Code, Problem

if TYPE_CHECKING:
    from llguidance import LLMatcher

# How long a guide may wait for its turn and be compiled, and how many requests may wait.
_MAX_WAIT_SECONDS = 10.0
_MAX_COMPILING = 256
# Many times what a mask takes.
_SLOW_SECONDS = 2e-3
# Most of a mask is llguidance's work, which needs no interpreter; for the rest more threads would wait for each other.
_MAX_MASK_THREADS = 8
_MIN_MASKS_A_THREAD = 4


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
            if any(without):
                bits = bytes(without)
        return TokenMask.smallest(bits, vocab_size)

    def advance(self, token_id: int, vocab_size: int) -> TokenMask | Problem:
        """Takes in a sampled token; returns what may come next."""
        begun = time.thread_time()  # what the interpreter or a processor was waited for is not the grammar's
        self.num_tokens += 1
        self.matcher.consume_token(token_id)
        try:
            return self.mask(next_tokens(self.matcher, vocab_size), vocab_size)
        except GrammarError as error:
            description = f"the guide could not be followed any further: {error}"
            return Problem(Code.RESOURCE_EXHAUSTED, description, f"guided.{_kind(self.request)}")
        finally:
            self.is_slow = time.thread_time() - begun > _SLOW_SECONDS


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
    _num_mask_threads: int = min(_MAX_MASK_THREADS, max(1, len(os.sched_getaffinity(0)) // 2))
    _mask_threads: ThreadPoolExecutor = field(init=False)
    _slow_mask_thread: ThreadPoolExecutor = field(
        default_factory=lambda: large_stack_threads("slow-token-masks")
    )
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._mask_threads = large_stack_threads("token-masks", self._num_mask_threads)

    def prepare(self, vocab_size: int) -> None:
        """Begins to make ready for guides."""
        self._vocab_size = vocab_size
        self.grammars.prepare(vocab_size)

    async def close(self) -> None:
        """Gives up what is being compiled or computed."""
        for task in (*self._compiling.values(), *self._tasks):
            task.cancel()
        for threads in (self._mask_threads, self._slow_mask_thread):
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
        for threads, some in ((self._mask_threads, quick), (self._slow_mask_thread, slow)):
            if some:
                task = asyncio.ensure_future(self._advance(threads, some))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _advance(
        self, threads: ThreadPoolExecutor, steps: list[tuple[int, _GuidedSequence, int]]
    ) -> None:
        num_shares = self._num_mask_threads if threads is self._mask_threads else 1
        size = max(_MIN_MASKS_A_THREAD, -(-len(steps) // num_shares))
        shares = [steps[first : first + size] for first in range(0, len(steps), size)]
        loop = asyncio.get_running_loop()
        computing = [loop.run_in_executor(threads, _advance_all, share, self._vocab_size) for share in shares]
        # All at once, so that the rows go on together.
        masks: dict[int, TokenMask | Problem] = {}
        for made in await asyncio.gather(*computing):
            masks.update(made)
        self.post(MasksReady(masks))


def _advance_all(
    steps: list[tuple[int, _GuidedSequence, int]], vocab_size: int
) -> Mapping[int, TokenMask | Problem]:
    try:
        return {
            sequence_id: sequence.advance(token_id, vocab_size) for sequence_id, sequence, token_id in steps
        }
    except Exception:
        problem = internal_problem("masks were not computed")
        return {sequence_id: problem for sequence_id, _, _ in steps}


def _kind(request: Request) -> str:
    return request.guide.kind if request.guide is not None else ""
