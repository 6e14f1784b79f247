"""The gRPC server of the API: both services, health and reflection, through one frontend."""

from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2_grpc import add_ServerReflectionServicer_to_server

from nanoserve.address import MAX_REQUEST_BYTES, SERVER_OPTIONS
from nanoserve.decoding import CheckedServer
from nanoserve.tls import ServerTls
from nanoserve.v1 import admin_pb2, inference_pb2
from nanoserve.v1.admin_pb2_grpc import add_AdminServiceServicer_to_server
from nanoserve.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server
from scheduler_svc.admin import AdminService
from scheduler_svc.api import InferenceService
from scheduler_svc.callers import KeyInterceptor
from scheduler_svc.frontend import Frontend
from scheduler_svc.health import HealthService
from scheduler_svc.model import Model
from scheduler_svc.tracing import RequestTracer

# How long slow readers may take, after the last request has ended, to read what is theirs.
READ_OUT_SECONDS = 5.0

_SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
)


@dataclass(frozen=True, slots=True)
class ApiAccess:
    """Whom the API lets in."""

    tls: ServerTls = field(default_factory=ServerTls)
    requires_keys: bool = False
    """Whether every call, but those to health, must show one of the engine's ApiKeys."""


class ApiServer:
    """`start`, then `set_serving` as often as that changes, then `stop`."""

    def __init__(
        self,
        model: Model,
        frontend: Frontend,
        access: ApiAccess,
        tracer: RequestTracer | None,
        *,
        shares_port: bool,
    ) -> None:
        """`shares_port` says whether other servers, of the same scheduler, listen at the same port.

        ValueError, naming a flag, where the files of `access` are no good.
        """
        options = dict(SERVER_OPTIONS)
        options["grpc.so_reuseport"] = int(shares_port)
        options["grpc.max_receive_message_length"] = MAX_REQUEST_BYTES
        self._health, self._tracer = HealthService(_SERVICES), tracer
        self._credentials = access.tls.credentials()
        interceptors = [KeyInterceptor(frontend)] if access.requires_keys else []
        self._server = grpc.aio.server(interceptors=interceptors, options=list(options.items()))
        checked = CheckedServer(self._server)
        add_InferenceServiceServicer_to_server(InferenceService(model, frontend, tracer), checked)
        add_AdminServiceServicer_to_server(AdminService(frontend), checked)
        add_HealthServicer_to_server(self._health, checked)
        names = (
            *_SERVICES,
            health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
            reflection.SERVICE_NAME,
        )
        add_ServerReflectionServicer_to_server(reflection.aio.ReflectionServicer(names), checked)

    async def start(self, address: str) -> int:
        """Listens, with health NOT_SERVING; returns the port. ValueError where it cannot listen."""
        try:
            if self._credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, self._credentials)
            await self._server.start()
        except RuntimeError as error:
            raise ValueError(f"--listen: cannot listen on {address!r}") from error
        return port

    def set_serving(self, serving: bool) -> None:
        """What health says."""
        self._health.set_serving(serving)

    async def stop(self, grace_seconds: float) -> None:
        """Stops; calls get the grace to end, which those that watch health do at once."""
        self._health.end()
        await self._server.stop(grace_seconds)
        if self._tracer is not None:
            await self._tracer.close()
