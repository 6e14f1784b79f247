"""The scheduler as a whole: gRPC server, frontend, engine and link, started and stopped together."""

import asyncio
import contextlib
import secrets
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from nanoserve.address import SERVER_OPTIONS, bound_address
from nanoserve.v1 import admin_pb2, inference_pb2
from nanoserve.v1.admin_pb2_grpc import add_AdminServiceServicer_to_server
from nanoserve.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server
from scheduler_svc.admin import AdminService
from scheduler_svc.admission import Admission
from scheduler_svc.api import InferenceService
from scheduler_svc.config import SchedulerConfig
from scheduler_svc.core.scheduler import CoreConfig
from scheduler_svc.engine import Engine, EngineExit, Inbox
from scheduler_svc.frontend import Frontend
from scheduler_svc.link import ExecutorLink
from scheduler_svc.listening import check_free, remove_socket
from scheduler_svc.model import Model

_SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
)
# What "as much as the executor allows" is, to a core that takes the smaller of both.
_NO_TOKEN_LIMIT = 2**31 - 1
# How long slow readers may take, after the last request has ended, to read what is theirs.
_READ_OUT_SECONDS = 5.0


class SchedulerServer:
    """`start`, then `wait` until the engine stops or `drain` has been asked for, then `stop`."""

    def __init__(self, config: SchedulerConfig, model: Model) -> None:
        self._config = config
        self._inbox: Inbox = asyncio.Queue()
        self._link = ExecutorLink(
            config.executor,
            model.fingerprint,
            self._inbox.put_nowait,
            take_over=config.take_over,
            loss_timeout=config.executor_loss_timeout,
            record=Path(config.record) if config.record else None,
        )
        self.frontend = Frontend(self._inbox.put_nowait, self._on_serving)
        self._engine = Engine(
            _core_config(config),
            Admission(config.max_queue_size, config.max_queue_tokens),
            self._inbox,
            self._link,
            self.frontend.receive,
        )
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        add_InferenceServiceServicer_to_server(InferenceService(model, self.frontend), self._server)
        add_AdminServiceServicer_to_server(AdminService(self.frontend), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self.serving = asyncio.Event()
        """Set once health is SERVING for the first time."""
        self._engine_task: asyncio.Task[EngineExit] | None = None
        self._frontend_task: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Listens, and begins to look for the executor; returns the address. ValueError where it cannot listen."""
        await self._on_serving(False)
        check_free(self._config.listen)
        try:
            port = self._server.add_insecure_port(self._config.listen)
            await self._server.start()
        except RuntimeError as error:
            raise ValueError(f"--listen: cannot listen on {self._config.listen!r}") from error
        self._frontend_task = asyncio.ensure_future(self.frontend.run())
        self._engine_task = asyncio.ensure_future(self._engine.run())
        return bound_address(self._config.listen, port)

    async def wait(self) -> EngineExit:
        """Waits until the engine stops by itself."""
        assert self._engine_task is not None
        return await asyncio.shield(self._engine_task)

    async def drain(self) -> None:
        """Refuses new requests and lets the running ones finish, within the configured time."""
        await self.frontend.drain(self._config.drain_timeout)

    async def stop(self) -> None:
        """Lets streams be read to their ends, then closes everything."""
        self.frontend.close()
        await self._server.stop(_READ_OUT_SECONDS)
        for task in (self._engine_task, self._frontend_task):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        await asyncio.to_thread(self._link.close)
        remove_socket(self._config.listen)

    async def _on_serving(self, serving: bool) -> None:
        state = health_pb2.HealthCheckResponse
        status = state.SERVING if serving else state.NOT_SERVING
        for name in ("", *_SERVICES):
            await self._health.set(name, status)
        if serving:
            self.serving.set()


def _core_config(config: SchedulerConfig) -> CoreConfig:
    return CoreConfig(
        max_num_batched_tokens=config.max_num_batched_tokens or _NO_TOKEN_LIMIT,
        pipeline_depth=config.pipeline_depth,
        enable_prefix_caching=config.enable_prefix_caching,
        enable_chunked_prefill=config.enable_chunked_prefill,
        priority_aging_seconds=config.priority_aging_seconds,
        batching=config.batching,
        kv_allocation=config.kv_allocation,
        enable_kv_cache=config.kv_cache,
        hash_seed=secrets.randbits(64),
    )
