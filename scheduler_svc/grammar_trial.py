"""Tries guides in a process of its own before they are compiled here: a hostile one may take stack, memory or time.

llguidance bounds most of what a guide can ask for, but it recurses, and some grammars take it exponential time, while
no thread can be stopped. The process (grammar_child.py) dies of these, and is started again.
"""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import OrderedDict
from collections.abc import Callable

import structlog

from scheduler_svc.core.request import Guide
from scheduler_svc.grammars import GrammarError

_MAX_REMEMBERED = 128
# In which a process that has closed its output, or whose input has ended, is gone.
_DEATH_SECONDS = 3.0
_log = structlog.get_logger()


class GrammarTrial:
    """One process, which tries one guide at a time. Calls of `check` and `begin` must not be cancelled."""

    def __init__(self, settings: Callable[[], bytes]) -> None:
        """`settings` gives the first line that the process reads; it may take its time, in a thread."""
        self._settings = settings
        self._process: Process | None = None
        self._turn = asyncio.Lock()
        self._deadly: OrderedDict[Guide, str] = OrderedDict()
        """Guides that the process died of, and what their clients are told."""

    async def begin(self) -> None:
        """Starts the process, if it does not run."""
        async with self._turn:
            await self._running()

    async def check(self, guide: Guide) -> None:
        """GrammarError where the guide cannot be compiled or takes too much; RuntimeError where no process runs."""
        async with self._turn:
            if guide in self._deadly:
                raise GrammarError(self._deadly[guide])
            question = json.dumps({"kind": guide.kind, "text": guide.text}).encode() + b"\n"
            process = await self._running()
            line = await _ask(process, question)
            # Killed from outside, which is no guide's doing.
            if not line and await _kill(process) == -signal.SIGKILL:
                process = await self._running()
                line = await _ask(process, question)
            if not line:
                raise GrammarError(await self._bury(process, guide))
        verdict = json.loads(line)
        if verdict is not None:
            raise GrammarError(verdict)

    async def close(self) -> None:
        """Ends the process."""
        process, self._process = self._process, None
        if process is not None:
            await _kill(process)

    async def _running(self) -> Process:
        if self._process is None or self._process.returncode is not None:
            settings = await asyncio.to_thread(self._settings)
            command = (sys.executable, "-m", "scheduler_svc.grammar_child")
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL
            )
            if not await _ask(self._process, settings):
                status = await _kill(self._process)
                raise RuntimeError(f"the process that tries grammars ended with status {status}")
        return self._process

    async def _bury(self, process: Process, guide: Guide) -> str:
        """The process has died of a guide; returns what to tell the guide's client."""
        status = await _kill(process)
        _log.warning("a grammar ended its process", kind=guide.kind, size=len(guide.text), status=status)
        is_slow = status == -signal.SIGPROF
        description = "takes too long to compile" if is_slow else "takes too much to compile"
        if status != -signal.SIGKILL:  # twice, but perhaps for want of memory elsewhere
            self._deadly[guide] = description
            if len(self._deadly) > _MAX_REMEMBERED:
                self._deadly.popitem(last=False)
        return description


async def _ask(process: Process, line: bytes) -> bytes:
    """The line that the process answers with; nothing where it has died."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(line)
        await process.stdin.drain()
    except (BrokenPipeError, ConnectionResetError):
        return b""
    return await process.stdout.readline()


async def _kill(process: Process) -> int:
    """Makes sure that the process has ended; returns its status."""
    assert process.stdin is not None
    process.stdin.close()
    # Of one that dies by itself the status is to be its own.
    try:
        return await asyncio.wait_for(process.wait(), _DEATH_SECONDS)
    except TimeoutError:
        process.kill()
        return await process.wait()
