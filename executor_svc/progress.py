"""How far the executor's steps have got, in memory that its parent shares: no call is made to tell.

Eight-byte words, each written at once: beats of the main thread, steps launched, steps finished, and the limit in
seconds of those under way.
"""

import mmap
import os
import tempfile
from collections.abc import MutableMapping
from typing import NamedTuple

PROGRESS_VARIABLE = "NANOSERVE_PROGRESS_FD"
_NUM_WORDS = 4
_BEATS, _LAUNCHED, _FINISHED, _LIMIT = range(_NUM_WORDS)


class Reading(NamedTuple):
    """What the parent reads."""

    num_beats: int
    """0 until the executor serves."""
    num_launched: int
    num_finished: int
    limit_seconds: float


def make_file() -> int:
    """A file descriptor of the memory, to be handed to the executor's process."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("nanoserve-progress")
    else:
        with tempfile.TemporaryFile() as file:
            number = os.dup(file.fileno())
    os.ftruncate(number, mmap.PAGESIZE)
    return number


class Page:
    """The memory, as either side maps it."""

    def __init__(self, file: int) -> None:
        """`file` is a descriptor of `make_file`."""
        view = memoryview(mmap.mmap(file, mmap.PAGESIZE))
        self._counts, self._seconds = view.cast("Q"), view.cast("d")

    def read(self) -> Reading:
        """What it holds now."""
        beats, launched, finished = self._counts[:_LIMIT].tolist()
        return Reading(beats, launched, finished, self._seconds[_LIMIT])

    def beat(self) -> None:
        """Notes that the main thread runs."""
        self._counts[_BEATS] += 1

    def launch(self, num_launched: int, limit_seconds: float) -> None:
        """Notes a launch; the limit first, so that it is never read without."""
        self._seconds[_LIMIT] = limit_seconds
        self._counts[_LAUNCHED] = num_launched

    def finish(self, num_finished: int, limit_seconds: float) -> None:
        """Notes that a step is over."""
        self._counts[_FINISHED] = num_finished
        self._seconds[_LIMIT] = limit_seconds


def page_of(environment: MutableMapping[str, str]) -> Page | None:
    """The page that a parent shares with this process alone; None where there is none."""
    file = environment.pop(PROGRESS_VARIABLE, None)
    return None if file is None else Page(int(file))
