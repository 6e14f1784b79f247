"""The API in worker processes: starts them, joins them to the engine, starts them again when they die or hang.

Workers share the listening port; each holds one end of a socket pair: when either process is killed, the kernel closes
its end and tells the other. A worker that cannot read that, stopped or still starting, is killed by the kernel with
this process (Linux): left alone it would keep the port from the scheduler that is started next.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from nanoserve.listening import reserve_port
from nanoserve.parent import child_environment
from nanoserve.scheduler.v1 import worker_pb2 as pb
from scheduler_svc import messages as msg
from scheduler_svc.api_server import READ_OUT_SECONDS, ApiAccess
from scheduler_svc.frame_connection import FrameConnection
from scheduler_svc.frontend import cancel_task
from scheduler_svc.heartbeat import PING_SECONDS, Heartbeat
from scheduler_svc.worker_hub import WorkerHub

_FIRST_BACKOFF_SECONDS = 0.1
_MAX_BACKOFF_SECONDS = 10.0
# A worker that has listened for so long before it died is started again without more ado.
_LASTING_SECONDS = 30.0
# So often a worker may be killed before it listens; one that ends by itself would do so again.
_MAX_KILLED_AT_START = 3
# How much longer than its streams a worker may take to stop.
_STOP_SECONDS = 3.0
_PING = pb.EngineFrame(ping=True).SerializeToString()
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class WorkerFlags:
    """What all workers are started with, beside address and socket."""

    model_folder: Path
    model_name: str
    log_level: str
    access: ApiAccess = field(default_factory=ApiAccess)
    otlp_traces_endpoint: str | None = None

    def words(self) -> list[str]:
        """The flags as a worker's command line has them."""
        tls = self.access.tls
        optional = {
            "tls-cert": tls.cert,
            "tls-key": tls.key,
            "tls-client-ca": tls.client_ca,
            "otlp-traces-endpoint": self.otlp_traces_endpoint,
        }
        return [
            *(f"--model={self.model_folder}", f"--name={self.model_name}", f"--log-level={self.log_level}"),
            *(f"--{name}={value}" for name, value in optional.items() if value is not None),
            *(["--requires-keys"] if self.access.requires_keys else []),
        ]


class WorkerPool:
    """`num_workers` servers at one port. See Api in server.py."""

    def __init__(
        self,
        address: str,
        num_workers: int,
        flags: WorkerFlags,
        send: Callable[[msg.Command], None],
        *,
        ping_seconds: float = PING_SECONDS,
    ) -> None:
        self._ping_seconds = ping_seconds
        self._hub = WorkerHub(send)
        self.serving, self.receive, self.drain = self._hub.serving, self._hub.receive, self._hub.drain
        self._address, self._num_workers, self._flags = address, num_workers, flags
        self._port: socket.socket | None = None
        self._started: list[asyncio.Future[None]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._is_stopping = False
        self.processes: dict[int, asyncio.subprocess.Process] = {}
        """Those that run, by the worker's index."""
        self.listening: set[int] = set()
        """Indices of the workers that listen."""

    async def start(self) -> str:
        """Returns when all workers listen. ValueError where the port is taken or a worker cannot start."""
        self._port, self._address = reserve_port(self._address)
        loop = asyncio.get_running_loop()
        self._started = [loop.create_future() for _ in range(self._num_workers)]
        self._tasks = [asyncio.ensure_future(self._keep_running(i)) for i in range(self._num_workers)]
        try:
            await asyncio.gather(*self._started)
        except ValueError:
            await self.stop()
            raise
        self._hub.open()
        return self._address

    async def wait(self) -> None:
        """Raises the bug that has stopped the API, or one worker's part of it; never returns."""
        futures = [self._hub.failed, *self._tasks]
        done, _ = await asyncio.wait(futures, return_when=asyncio.FIRST_EXCEPTION)
        for future in done:
            future.result()

    async def stop(self) -> None:
        """Lets streams be read to their ends, then ends the workers."""
        self._is_stopping = True
        self._hub.stop()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=READ_OUT_SECONDS + _STOP_SECONDS)
        for task in self._tasks:
            await cancel_task(task)
        if self._port is not None:
            self._port.close()

    async def _keep_running(self, index: int) -> None:
        """Runs one worker after the other, until the pool stops."""
        loop = asyncio.get_running_loop()
        backoff, num_killed = _FIRST_BACKOFF_SECONDS, 0
        while not self._is_stopping:
            began, was_killed = loop.time(), False
            try:
                reason, status = await self._run(index)
                reason, was_killed = f"{reason}, status {status}", status < 0
            except OSError as error:
                reason = str(error)  # no process to be had
            num_killed += was_killed
            if not self._started[index].done() and not (was_killed and num_killed <= _MAX_KILLED_AT_START):
                description = f"--api-workers: worker {index} could not start: {reason}"
                self._started[index].set_exception(ValueError(description))
                return
            if self._is_stopping:
                return
            if loop.time() - began > _LASTING_SECONDS:
                backoff = _FIRST_BACKOFF_SECONDS
            _log.error("api worker lost", worker=index, reason=reason, retry_seconds=backoff)
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, _MAX_BACKOFF_SECONDS)

    async def _run(self, index: int) -> tuple[str, int]:
        """Runs one worker process to its end; returns why it ended, and its status: below 0 for a signal."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await self._spawn(index, theirs.fileno())
            except OSError:
                ours.close()
                raise
        self.processes[index] = process

        def take(data: bytes) -> None:
            heartbeat.heard()
            self._hub.take(number, data)

        connection = FrameConnection(take)
        heartbeat = Heartbeat(lambda: connection.send(_PING), self._ping_seconds)
        number = self._hub.connect(connection.send, lambda: self._note_listening(index))
        silence = asyncio.ensure_future(heartbeat.silence())
        try:
            await connection.open(ours)
            await asyncio.wait([connection.lost, silence], return_when=asyncio.FIRST_COMPLETED)
            reason = connection.lost.result() if connection.lost.done() else silence.result()
        finally:
            silence.cancel()
            self._hub.disconnect(number)
            connection.close()
            del self.processes[index]
            self.listening.discard(index)
            # It may be gone, or about to; a worker whose connection is lost is of no use in any case. `process.kill()`
            # would take the status of one that is gone before asyncio does, which then could not tell why it ended.
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            status = await process.wait()
        return reason, status

    async def _spawn(self, index: int, fd: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "scheduler_svc.api_worker", f"--index={index}", f"--fd={fd}"),
            *(f"--listen={self._address}", *self._flags.words()),
            env=child_environment(os.environ),
            pass_fds=[fd],
            stdin=asyncio.subprocess.DEVNULL,
        )

    def _note_listening(self, index: int) -> None:
        self.listening.add(index)
        if not self._started[index].done():
            self._started[index].set_result(None)
        else:
            _log.info("api worker back", worker=index)
