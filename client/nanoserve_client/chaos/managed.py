"""A service's process, started again as soon as it ends; every end that nobody had announced is a problem."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO

from nanoserve_client.chaos.process_table import descendants, is_running
from nanoserve_client.child import guarded, log_entry

_RESTART_SECONDS = 0.1
# How long what a process had started may outlive it.
_ORPHAN_SECONDS = 5.0
_LAST_WORDS_SECONDS = 1.0
_MAX_LINE_BYTES = 1 << 20


class ManagedProcess:
    """Keeps one command running. `start` it and use it in one event loop, which the main thread runs."""

    def __init__(self, name: str, command: Sequence[str], log: Callable[[str, str], None]) -> None:
        """`log` gets (name, line) of what it prints."""
        self.name = name
        self.command = list(command)
        """What the next process will run."""
        self.addresses: dict[str, str] = {}
        """What it has said that it listens at, by the event of its log line."""
        self.problems: list[str] = []
        """Ends that were not excused, and processes that outlived them."""
        self.num_starts = 0
        self.tolerates_ends = False
        """While it is set, every end is excused."""
        self.statuses: list[int] = []
        """Exit statuses, negative for signals, of those that have ended."""
        self._log = log
        self._num_excused = 0
        self._is_stopping = False
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None]
        self._task: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()
        self._orphan_checks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """What it has said that it listens at, empty before that."""
        return self.addresses.get("listening", "")

    @property
    def pid(self) -> int:
        """Of the process of this moment, or of the last."""
        assert self._process is not None  # it has been started
        return self._process.pid

    @property
    def family(self) -> list[int]:
        """Process ids: its own, and of all that descend from it."""
        return [self.pid, *descendants(self.pid)]

    async def start(self) -> None:
        """Starts it, and goes on doing so."""
        await self._spawn()
        self._task = asyncio.ensure_future(self._keep_running())

    async def wait_end(self, num_ends: int) -> int:
        """Returns the exit status of the end after so many, once it has come."""
        while len(self.statuses) <= num_ends:
            self._ended.clear()
            await self._ended.wait()
        return self.statuses[num_ends]

    def excuse_end(self) -> None:
        """The next end is one that somebody has seen to."""
        self._num_excused += 1

    def forget_excuses(self) -> None:
        """Ends from now on are problems again."""
        self._num_excused = 0

    def kill(self, pid: int) -> None:
        """Ends one of its family, and so it, by SIGKILL."""
        self.excuse_end()
        family = self.family
        _send(pid, signal.SIGKILL)
        self._look_for_orphans([member for member in family if member != self.pid])

    async def stop(self, grace_seconds: float) -> int | None:
        """Ends it by SIGTERM; returns its exit status, None where it had to be killed."""
        self._is_stopping = True
        family = self.family
        assert self._process is not None
        assert self._task is not None
        _send(self.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_seconds):
                await self._process.wait()
        except TimeoutError:
            self.destroy()
            await self._task
            return None
        await self._task
        self._look_for_orphans(family[1:])
        await asyncio.gather(*self._orphan_checks)
        return self._process.returncode

    def destroy(self) -> None:
        """Ends it and all that it has started, at once and for good."""
        self._is_stopping = True
        if self._process is not None:
            for pid in self.family:
                _send(pid, signal.SIGKILL)

    async def _spawn(self) -> None:
        # A pipe of our own: asyncio's would have it wait for the end of all who hold it, orphans included.
        reading, writing = os.pipe()
        try:
            # In a group of its own, a terminal's Ctrl-C does not reach it.
            self._process = await asyncio.create_subprocess_exec(
                *guarded(self.command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=asyncio.subprocess.STDOUT,
                process_group=0,
            )
        finally:
            os.close(writing)
        self._reader = asyncio.ensure_future(self._read(os.fdopen(reading, "rb", buffering=0)))
        self.num_starts += 1

    async def _keep_running(self) -> None:
        while True:
            assert self._process is not None
            began = time.monotonic()
            status = await self._process.wait()
            with suppress(TimeoutError):  # what it left behind may hold the pipe
                await asyncio.wait_for(self._reader, _LAST_WORDS_SECONDS)
            self.statuses.append(status)
            self._ended.set()
            if self._is_stopping:
                return
            self._judge_end(status, time.monotonic() - began)
            await asyncio.sleep(_RESTART_SECONDS)
            if self._is_stopping:
                return
            await self._spawn()

    def _judge_end(self, status: int, lived_seconds: float) -> None:
        end = f"the {self.name} ended with status {status} after {lived_seconds:.1f} s"
        self._log("chaos", end)
        if self._num_excused:
            self._num_excused -= 1
        elif not self.tolerates_ends:
            self.problems.append(end)

    async def _read(self, pipe: IO[bytes]) -> None:
        reader = asyncio.StreamReader(_MAX_LINE_BYTES)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        try:
            async for data in reader:
                self._take_line(data.decode(errors="replace").rstrip())
        finally:
            transport.close()

    def _take_line(self, line: str) -> None:
        entry = log_entry(line)
        if entry is not None and str(entry["event"]).endswith("listening"):
            self.addresses[entry["event"]] = str(entry.get("address"))
        self._log(self.name, line)

    def _look_for_orphans(self, pids: Sequence[int]) -> None:
        check = asyncio.ensure_future(self._find_orphans(pids))
        self._orphan_checks.add(check)
        check.add_done_callback(self._orphan_checks.discard)

    async def _find_orphans(self, pids: Sequence[int]) -> None:
        """Notes, and ends, those of `pids` that go on after the end of who had started them."""
        end = time.monotonic() + _ORPHAN_SECONDS
        left = list(pids)
        while left and time.monotonic() < end:
            await asyncio.sleep(0.05)
            left = [pid for pid in left if is_running(pid)]
        for pid in left:
            self.problems.append(f"process {pid} of the {self.name} goes on after its end")
            _send(pid, signal.SIGKILL)


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
