"""Writes messages to a stream in the order in which they are given, each as soon as the one before is written."""

import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import Coroutine
from typing import Any, Protocol

import grpc

from nanoserve.executor.v1 import executor_pb2 as pb


class _Stream(Protocol):
    async def write(self, request: pb.ExecuteRequest) -> None: ...


class PlanWriter:
    """Belongs to one stream. That a stream has ended is its reader's to tell: what is sent after that goes nowhere."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self._unwritten: deque[pb.ExecuteRequest] = deque()
        self._task: asyncio.Task[None] | None = None
        self._is_over = False

    def send(self, message: pb.ExecuteRequest) -> None:
        """Begins to write a message, or queues it behind those that are not written yet; returns at once."""
        if self._is_over:
            return
        self._unwritten.append(message)
        if self._task is None or self._task.done():
            self._task = _begin(self._write())

    async def close(self) -> None:
        """Gives up what is not written. Raises what a write failed with, but for the end of the stream."""
        self._is_over = True
        self._unwritten.clear()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _write(self) -> None:
        try:
            while self._unwritten:
                await self._stream.write(self._unwritten.popleft())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            self._is_over = True
        except Exception:
            self._is_over = True  # `close` tells of it
            raise


def _begin(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Makes a task whose first part runs now where Python can do that, and in the loop's next turn where not."""
    if sys.version_info >= (3, 12):
        return asyncio.Task(coroutine, loop=asyncio.get_running_loop(), eager_start=True)
    return asyncio.create_task(coroutine)
