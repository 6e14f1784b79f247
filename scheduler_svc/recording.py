"""Writes what passes between scheduler and executor to a file: see recording.proto for the format.

An entry is encoded where it happens, a few microseconds, and written by a thread of its own, so that no disk is ever
waited for. A recording is a witness, never a condition of serving: where it cannot be written on, it ends.
"""

import threading
import time
from collections import deque
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog

from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve.executor.v1 import recording_pb2 as recording

FORMAT_VERSION = 1
_WRITE_SECONDS = 0.25
# What may wait for a disk that does not take it.
_MAX_PENDING_BYTES = 64 * 1024 * 1024
_CLOSE_SECONDS = 5.0
_log = structlog.get_logger()


class Recorder:
    """The recording of one scheduler's life. All methods but `close` return at once; one thread calls them."""

    def __init__(self, path: Path, scheduler_id: str, model_fingerprint: str) -> None:
        """Opens the file; one that is there already is kept, as PATH.1 or the next number that is free.

        ValueError, naming the flag, where the file cannot be opened.
        """
        self._path = path
        self._scheduler_id, self._model_fingerprint = scheduler_id, model_fingerprint
        self._begin_unix_ns, self._begin_ns = time.time_ns(), time.monotonic_ns()
        try:
            _set_aside(path)
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise ValueError(f"--record: cannot write {str(path)!r}: {error.strerror}") from error
        self._has_header = self._in_session = False
        self._pending: deque[bytes] = deque()
        self._num_pending_bytes = 0
        self._stopped = False
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._write, name="recorder", daemon=True)
        self._thread.start()

    def opened(self, opened: pb.SessionOpened) -> None:
        """A session is open."""
        if not self._has_header:
            self._has_header = True
            header = recording.RecordingHeader(
                format_version=FORMAT_VERSION,
                scheduler_version=version("nanoserve"),
                scheduler_id=self._scheduler_id,
                model_fingerprint=self._model_fingerprint,
                executor=opened.description,
                begin_unix_ns=self._begin_unix_ns,
            )
            self._add(header=header)
        self._in_session = True
        self._add(opened=opened)

    def plan(self, plan: pb.StepPlan) -> None:
        """A plan is sent. One that comes when the session is lost already is not recorded: nobody gets it."""
        if self._in_session:
            self._add(plan=plan)

    def result(self, result: pb.StepResult) -> None:
        """A result has come; to be told before anybody plans by it."""
        self._add(result=result)

    def lost(self, reason: str) -> None:
        """The session is over; what is recorded so far is written soon."""
        if self._in_session:
            self._in_session = False
            self._add(lost=recording.RecordingLoss(reason=reason))
            self._wake.set()

    def close(self) -> None:
        """Writes what is left, waiting for it some seconds at most. Nothing is recorded any more."""
        self._stopped = True
        self._closing.set()
        self._wake.set()
        self._thread.join(_CLOSE_SECONDS)

    def _add(self, **entry: Any) -> None:
        if self._stopped:
            return
        message = recording.RecordingEntry(time_ns=time.monotonic_ns() - self._begin_ns, **entry)
        data = message.SerializeToString()
        self._pending.append(varint(len(data)) + data)
        self._num_pending_bytes += len(data)
        if self._num_pending_bytes > _MAX_PENDING_BYTES:
            # The count is of what came since the writer last looked: it has not kept up.
            self._stop("the disk is too slow")

    def _stop(self, reason: str) -> None:
        if not self._stopped:
            self._stopped = True
            _log.error("recording ended", path=str(self._path), reason=reason)

    def _write(self) -> None:
        """The writing thread: every quarter of a second, and at the end."""
        try:
            with self._file:
                closing = False
                while not closing:
                    self._wake.wait(_WRITE_SECONDS)
                    self._wake.clear()
                    closing = self._closing.is_set()
                    self._write_pending()
        except OSError as error:
            self._stop(error.strerror or type(error).__name__)
        self._pending.clear()

    def _write_pending(self) -> None:
        entries = []
        self._num_pending_bytes = 0
        while self._pending:
            entries.append(self._pending.popleft())
        data = memoryview(b"".join(entries))
        while len(data):
            data = data[self._file.write(data) :]


def varint(number: int) -> bytes:
    """The base-128 encoding of a number from 0 on, least significant digits first; see protobuf's encoding guide."""
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def _set_aside(path: Path) -> None:
    """Renames a file that is in the way: an earlier recording may be of the very failure that ended its scheduler."""
    if path.is_file() and path.stat().st_size:
        number = 1
        while (other := path.with_name(f"{path.name}.{number}")).exists():
            number += 1
        path.rename(other)
