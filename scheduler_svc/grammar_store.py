"""Grammars for the engine, compiled off its loop: tried in a process first, then made in a thread, and remembered."""

import asyncio
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from scheduler_svc.core.request import Guide
from scheduler_svc.errors import internal_problem
from scheduler_svc.grammar_trial import GrammarTrial
from scheduler_svc.grammars import Grammar, GrammarCompiler, large_stack_thread

# The process that tries guides is started ahead of them, but not while all else starts.
_TRIAL_DELAY_SECONDS = 2.0


@dataclass(slots=True)
class GrammarStore:
    """See the module's docstring. Lives on the engine's loop."""

    tokenizer: Callable[[], str]
    """Reads the text of tokenizer.json."""
    eos_token_ids: Sequence[int]
    _vocab_size: int = 0
    _compiler: "asyncio.Future[GrammarCompiler] | None" = None
    _trial: GrammarTrial = field(init=False)
    _trial_start: "asyncio.Task[None] | None" = None
    _thread: ThreadPoolExecutor = field(default_factory=lambda: large_stack_thread("compile-grammar"))
    _under_way: dict[Guide, "asyncio.Task[Grammar]"] = field(default_factory=dict)
    """One for all requests that wait for the same grammar."""

    def __post_init__(self) -> None:
        self._trial = GrammarTrial(self._trial_settings)

    def prepare(self, vocab_size: int) -> None:
        """Begins to make ready for guides; once, as the size of the vocabulary does not change with the executor."""
        if self._compiler is None:
            self._vocab_size = vocab_size
            self._compiler = asyncio.get_running_loop().run_in_executor(self._thread, self._make_compiler)
            self._trial_start = asyncio.ensure_future(self._begin_trials())

    async def get(self, guide: Guide) -> Grammar:
        """The grammar of a guide; GrammarError where it has none. May be cancelled, which leaves the work to go on."""
        task = self._under_way.get(guide)
        if task is None:
            task = self._under_way[guide] = asyncio.ensure_future(self._make(guide))
            task.add_done_callback(lambda done: self._forget(guide, done))
        return await asyncio.shield(task)

    def forget(self, guide: Guide) -> None:
        """A sequence has failed in a grammar. What it used up is gone for all that share it: others get another."""
        if self._compiler is not None and self._compiler.done():
            self._compiler.result().forget(guide)

    async def close(self) -> None:
        """Gives up what is being compiled."""
        for task in (*self._under_way.values(), self._trial_start):
            if task is not None:
                task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)
        await self._trial.close()

    def _make_compiler(self) -> GrammarCompiler:
        return GrammarCompiler(self.tokenizer(), self.eos_token_ids, self._vocab_size)

    def _trial_settings(self) -> bytes:
        settings = {
            "tokenizer": self.tokenizer(),
            "eos_token_ids": list(self.eos_token_ids),
            "vocab_size": self._vocab_size,
        }
        return json.dumps(settings).encode() + b"\n"

    async def _begin_trials(self) -> None:
        await asyncio.sleep(_TRIAL_DELAY_SECONDS)
        try:
            await self._trial.begin()
        except Exception:
            internal_problem("grammars cannot be tried")

    async def _make(self, guide: Guide) -> Grammar:
        assert self._compiler is not None
        compiler = await asyncio.shield(self._compiler)
        grammar = compiler.cached(guide)
        if grammar is None:
            await self._trial.check(guide)
            loop = asyncio.get_running_loop()
            grammar = await loop.run_in_executor(self._thread, compiler.compile, guide)
        return grammar

    def _forget(self, guide: Guide, done: "asyncio.Task[Grammar]") -> None:
        del self._under_way[guide]
        if not done.cancelled():
            done.exception()  # seen, though perhaps nobody waits for it any more
