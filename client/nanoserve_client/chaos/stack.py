"""The services under test: an executor and a scheduler, started again when they end, and what lies between them.

    clients --- client_link --- scheduler --- executor_link --- (relay) --- executor

Both links are proxies of bytes. The relay, which reads and changes messages, is there for profiles that ask for it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nanoserve_client.async_client import AsyncClient
from nanoserve_client.chaos.managed import ManagedProcess
from nanoserve_client.chaos.proxy import ByteProxy
from nanoserve_client.chaos.rogue_executor import Relay
from nanoserve_client.connection import channel_options, open_connection
from nanoserve_client.errors import NanoserveError, ServerStartError
from nanoserve_client.results import Load
from nanoserve_client.supervisor import EXECUTOR_COMMAND, SCHEDULER_COMMAND, private_folder

_POLL_SECONDS = 0.05
_GRACE_SECONDS = 45.0
_CLIENT_CONNECTIONS = 4
# Beyond the time that an executor takes to start. A scheduler that starts while another's session is open, say, gives
# up after some seconds, and starts again.
_PATIENCE_SECONDS = 50.0


@dataclass(frozen=True, slots=True)
class StackFlags:
    """What the services are started with."""

    model: str | None = None
    executor: Sequence[str] = ()
    scheduler: Sequence[str] = ()
    api_workers: int = 0
    has_relay: bool = False
    restart_seconds: float = 10.0
    """How long an executor takes to start again, about."""
    start_seconds: float = 600.0
    """How long the first start may take: what is compiled, say, is kept for later ones."""

    @property
    def patience_seconds(self) -> float:
        """How long to wait for what comes back."""
        return _PATIENCE_SECONDS + self.restart_seconds


@dataclass(slots=True)
class ServiceLog:
    """What the services printed, the last lines of it."""

    write: Callable[[str], None] = lambda line: None
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=400))

    def __call__(self, name: str, line: str) -> None:
        """Takes a line."""
        text = f"{time.monotonic():.3f} {name:<9} | {line}"
        self.lines.append(text)
        self.write(text)


class Stack:
    """See the module's docstring. `start` it, use it and `close` it in one event loop."""

    def __init__(self, flags: StackFlags, log: ServiceLog) -> None:
        self.log = log
        self._flags = flags
        self._folder: TemporaryDirectory[str] = private_folder()
        folder = Path(self._folder.name)
        self.executor_address = f"unix:{folder / 'executor'}"
        upstream = self.executor_address
        self.relay: Relay | None = None
        if flags.has_relay:
            upstream = f"unix:{folder / 'relay'}"
            self.relay = Relay(upstream, self.executor_address)
        self.executor_link = ByteProxy(f"unix:{folder / 'link'}", upstream)
        self.client_link = ByteProxy("127.0.0.1:0", "")
        level = "--log-level=info"
        model = [] if flags.model is None else [f"--model={flags.model}"]
        executor = [*EXECUTOR_COMMAND, *model, *flags.executor, f"--listen={self.executor_address}", level]
        self.executor = ManagedProcess("executor", executor, log)
        scheduler = [
            *(*SCHEDULER_COMMAND, *model, *flags.scheduler, f"--api-workers={flags.api_workers}"),
            *("--listen=127.0.0.1:0", f"--executor={self.executor_link.address}", level),
        ]
        self.scheduler = ManagedProcess("scheduler", scheduler, log)
        self.is_open = False

    async def start(self) -> None:
        """Returns when both serve; ServerStartError where they do not, and what has been started is to be destroyed."""
        self.is_open = True
        await self.executor_link.start()
        if self.relay is not None:
            await self.relay.start()
        await self.executor.start()
        await self.scheduler.start()
        try:
            await self.wait_serving(self._flags.start_seconds)
        except TimeoutError:
            words = self.log.lines[-1] if self.log.lines else ""
            raise ServerStartError("scheduler", f"the services do not serve: {words}", None) from None
        self.scheduler.command.append(f"--listen={self.scheduler.address}")  # its successors take that port
        self.client_link.upstream = self.scheduler.address
        await self.client_link.start()

    @property
    def patience_seconds(self) -> float:
        """How long to wait for what comes back."""
        return self._flags.patience_seconds

    async def wait_serving(self, timeout_seconds: float | None = None) -> None:
        """Returns when both answer SERVING; TimeoutError where they do not, ServerStartError where one ends instead."""
        async with asyncio.timeout(timeout_seconds or self.patience_seconds):
            for process in (self.executor, self.scheduler):
                await self.wait_serving_of(process)

    async def wait_serving_of(self, process: ManagedProcess) -> None:
        """Returns when one of them answers SERVING; ServerStartError where it ends instead, at the start."""
        while not await self.is_serving(process):
            if not self.client_link.upstream and process.problems:
                reason = f"{process.problems[0]}: {self.log.lines[-1]}"
                raise ServerStartError(process.name, reason, None)
            await asyncio.sleep(_POLL_SECONDS)

    async def is_serving(self, process: ManagedProcess) -> bool:
        """Whether a service answers SERVING at this moment."""
        address = self.executor_address if process is self.executor else process.address
        if not address:
            return False
        async with grpc.aio.insecure_channel(address, options=channel_options()) as channel:
            with suppress(grpc.RpcError):
                answer = await health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(), timeout=1.0
                )
                return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
        return False

    def client(self) -> AsyncClient:
        """A client behind the link of clients, patient enough for a scheduler that starts again."""
        return AsyncClient(
            self.client_link.address,
            connect_timeout=self.patience_seconds,
            wait_for_ready=True,
            resume_timeout=self.patience_seconds,
            connections=_CLIENT_CONNECTIONS if self._flags.api_workers else 1,
        )

    async def load(self) -> Load:
        """The scheduler's load, asked past the link; NanoserveError where it does not say."""
        async with AsyncClient(self.scheduler.address) as client:
            return await client.get_load(timeout=5.0)

    async def wait_idle(self) -> str:
        """Returns when nothing runs, waits or is held; what is left where that does not come to be."""
        end = time.monotonic() + self.patience_seconds
        left = "the scheduler says nothing"
        while time.monotonic() < end:
            with suppress(NanoserveError):
                left = _left(await self.load())
            if not left:
                return ""
            await asyncio.sleep(_POLL_SECONDS)
        return left

    def take_problems(self) -> list[str]:
        """What went wrong with processes since the last call."""
        problems = []
        for process in (self.executor, self.scheduler):
            problems += process.problems
            process.problems.clear()
        return problems

    async def close(self) -> list[str]:
        """Ends all; returns what was not as it must be: exit statuses, orphans, sockets still open."""
        self.is_open = False
        problems = []
        for process in (self.scheduler, self.executor):
            status = await process.stop(_GRACE_SECONDS)
            if status != 0:
                how = "had to be killed" if status is None else f"ended with status {status}"
                problems.append(f"the {process.name} {how} after SIGTERM")
        await self._close_links()
        for address in (self.scheduler.address, self.executor_address, self.client_link.address):
            if await _answers(address):
                problems.append(f"{address} is still listened at")
        self._folder.cleanup()
        return problems + self.take_problems()

    async def destroy(self) -> None:
        """Ends all at once, whatever its state."""
        self.is_open = False
        for process in (self.scheduler, self.executor):
            process.destroy()
        await self._close_links()
        self._folder.cleanup()

    async def _close_links(self) -> None:
        await self.client_link.close()
        await self.executor_link.close()
        if self.relay is not None:
            await self.relay.close()


def _left(load: Load) -> str:
    """What a load has that an idle server has not."""
    left = [
        f"{count} {what}"
        for count, what in (
            (load.num_running_requests, "sequences running"),
            (load.num_waiting_requests, "waiting"),
            (load.num_held_blocks, "blocks held"),
        )
        if count
    ]
    if load.num_free_blocks + load.num_cached_blocks + load.num_held_blocks != load.num_total_blocks:
        left.append("blocks do not add up")
    if not load.executor_healthy:
        left.append("no session with the executor")
    return ", ".join(left)


async def _answers(address: str) -> bool:
    """Whether anybody takes connections there."""
    try:
        _, writer = await open_connection(address)
    except OSError:
        return False
    writer.close()
    return True
