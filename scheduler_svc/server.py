"""The scheduler as a whole: API, engine and link, started and stopped together."""

import asyncio
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import structlog

from scheduler_svc.admission import Admission
from scheduler_svc.api_keys import read_api_keys
from scheduler_svc.api_server import ApiAccess
from scheduler_svc.config import SchedulerConfig
from scheduler_svc.engine import Engine, EngineExit, Inbox
from scheduler_svc.errors import internal_problem
from scheduler_svc.executor_access import executor_access, executor_tls
from scheduler_svc.frontend import cancel_task
from scheduler_svc.grammar_store import GrammarStore
from scheduler_svc.grammars import is_available
from scheduler_svc.guides import Guides
from scheduler_svc.link import ExecutorLink
from scheduler_svc.local_api import LocalApi
from scheduler_svc.messages import ApiKeys, Command, Event, SetLimits
from scheduler_svc.metrics_server import MetricsServer
from scheduler_svc.model import Model
from scheduler_svc.profiler import Profiler
from scheduler_svc.security_flags import server_tls
from scheduler_svc.tracing import check_tracing, open_tracer
from scheduler_svc.worker_pool import WorkerFlags, WorkerPool

_log = structlog.get_logger()


class Api(Protocol):
    """What the clients meet: in this process or in others."""

    @property
    def serving(self) -> asyncio.Event:
        """Set once health is SERVING for the first time."""

    def receive(self, event: Event) -> None:
        """Takes an event of the engine."""

    async def start(self) -> str:
        """Listens; returns the address. ValueError, naming a flag, where it cannot."""

    async def wait(self) -> None:
        """Raises the bug that has stopped the API; never returns."""

    async def drain(self, timeout_seconds: float | None) -> int:
        """Has new requests refused; returns, when none is left, how many had to be ended."""

    async def stop(self) -> None:
        """Lets streams be read to their ends, then closes."""


class SchedulerServer:
    """`start`, then `wait` until the engine stops or `drain` has been asked for, then `stop`."""

    def __init__(self, config: SchedulerConfig, model: Model) -> None:
        self._config = config
        self._inbox: Inbox = asyncio.Queue()
        self._key_file = None if config.api_key_file is None else read_api_keys(config.api_key_file)
        tls = executor_tls(config.executor_tls_ca, config.executor_tls_cert, config.executor_tls_key)
        executor = executor_access(config.executor, tls, config.executor_secret_file)
        self._link = ExecutorLink(
            executor,
            model.fingerprint,
            take_over=config.take_over,
            loss_timeout=config.executor_loss_timeout,
            record=Path(config.record) if config.record else None,
        )
        submit: Callable[[Command], None] = self._inbox.put_nowait
        self._metrics: MetricsServer | None = None
        if config.metrics_listen is not None:
            self._metrics = MetricsServer(config.metrics_listen, model.name, submit)
            submit = self._metrics.submit
        self.api: Api
        access = ApiAccess(server_tls(config), requires_keys=config.api_key_file is not None)
        if config.api_workers:
            access.tls.credentials()  # what is wrong with its files is told once, and not by each worker
            endpoint = config.otlp_traces_endpoint
            check_tracing(endpoint)  # likewise
            flags = WorkerFlags(model.folder, model.name, config.log_level, access, endpoint)
            self.api = WorkerPool(config.listen, config.api_workers, flags, submit)
        else:
            tracer = open_tracer(config.otlp_traces_endpoint, model.name)
            self.api = LocalApi(config.listen, model, access, submit, tracer)
        self._guides: Guides | None = None
        if is_available():
            grammars = GrammarStore(model.tokenizer.to_json, model.eos_token_ids)
            self._guides = Guides(grammars, self._inbox.put_nowait)
        self._engine = Engine(
            config.core(hash_seed=secrets.randbits(64)),
            Admission(config.max_queue_size, config.max_queue_tokens),
            self._inbox,
            self._link,
            self._publish if self._metrics is not None else self.api.receive,
            Profiler(executor, self.api.receive),
            max_plan_ms=config.max_plan_ms,
            loss_grace=config.executor_loss_grace,
            guides=self._guides,
        )
        self._engine_task: asyncio.Task[EngineExit] | None = None

    @property
    def serving(self) -> asyncio.Event:
        """Set once health is SERVING for the first time."""
        return self.api.serving

    def _publish(self, event: Event) -> None:
        if self._metrics is None or self._metrics.receive(event):
            self.api.receive(event)

    async def start(self) -> str:
        """Listens, and begins to look for the executor; returns the address. ValueError where it cannot listen."""
        self._tell_keys()
        if self._metrics is not None:
            _log.info("metrics_listening", address=self._metrics.start())
        address = await self.api.start()
        self._engine_task = asyncio.ensure_future(self._engine.run())
        return address

    def reload_keys(self) -> None:
        """Reads the key file again; one that is no good is logged, and the keys stay as they are."""
        path = self._config.api_key_file
        if path is None:
            return
        try:
            self._key_file = read_api_keys(path)
        except ValueError as error:
            _log.error("api keys not reloaded", reason=str(error))
            return
        self._tell_keys()
        _log.info("api keys reloaded", num_keys=len(self._key_file.keys))

    def _tell_keys(self) -> None:
        """Tells the engine what tenants may do, and the API who they are."""
        if self._key_file is not None:
            self._inbox.put_nowait(SetLimits(self._key_file.limits))
            self.api.receive(ApiKeys(self._key_file.keys))

    async def wait(self) -> EngineExit:
        """Waits until the engine stops by itself, or the API by a bug."""
        assert self._engine_task is not None
        api = asyncio.ensure_future(self.api.wait())
        try:
            await asyncio.wait([self._engine_task, api], return_when=asyncio.FIRST_COMPLETED)
            if not self._engine_task.done():
                await api
            return await asyncio.shield(self._engine_task)
        except Exception:
            return EngineExit(internal_problem("the scheduler failed").description, is_failure=True)
        finally:
            api.cancel()

    async def drain(self) -> None:
        """Refuses new requests and lets the running ones finish, within the configured time."""
        await self.api.drain(self._config.drain_timeout)

    async def stop(self) -> None:
        """Lets streams be read to their ends, then closes everything."""
        await self.api.stop()
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.stop)
        if self._engine_task is not None:
            await cancel_task(self._engine_task)
        if self._guides is not None:
            await self._guides.close()
        await asyncio.to_thread(self._link.close)
