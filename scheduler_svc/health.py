"""grpc.health.v1 for a server that tells its watchers when it stops.

The package's own servicer keeps watches open until they are cut off, holds its lock while it writes to one, and
forgets the other watchers of a service when one leaves.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2 as pb

from scheduler_svc.errors import handler

_NOT_SERVING, _SERVING = pb.HealthCheckResponse.NOT_SERVING, pb.HealthCheckResponse.SERVING


class HealthService:
    """One state for the whole server ("") and all of `services`, NOT_SERVING at first."""

    def __init__(self, services: Sequence[str]) -> None:
        self._services = frozenset(("", *services))
        self._is_serving = self._has_ended = False
        self._changed = asyncio.Event()
        """Set, and replaced, at each change."""

    def set_serving(self, serving: bool) -> None:
        """What health says from now on; nothing more changes after `end`."""
        if self._has_ended or serving == self._is_serving:
            return
        self._is_serving = serving
        self._notify()

    def end(self) -> None:
        """Says NOT_SERVING for good, and ends the streams of those who watch."""
        self._is_serving, self._has_ended = False, True
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: pb.HealthCheckRequest, context: Any) -> pb.HealthCheckResponse:
        """The state of this moment; NOT_FOUND for a service that is not there."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return pb.HealthCheckResponse(status=self._status)

    async def List(self, request: Any, context: Any) -> Any:
        """The state of this moment of all services: of grpcio-health-checking 1.85 and later."""
        status = pb.HealthCheckResponse(status=self._status)
        return pb.HealthListResponse(statuses=dict.fromkeys(self._services, status))

    @handler
    async def Watch(self, request: pb.HealthCheckRequest, context: Any) -> None:
        """The state now and at each change, until the server stops."""
        known = request.service in self._services
        last = None
        while True:
            changed, has_ended = self._changed, self._has_ended
            status = self._status if known else pb.HealthCheckResponse.SERVICE_UNKNOWN
            if status != last:
                await context.write(pb.HealthCheckResponse(status=status))
            last = status
            if has_ended:
                return
            await changed.wait()

    @property
    def _status(self) -> pb.HealthCheckResponse.ServingStatus.ValueType:
        return _SERVING if self._is_serving else _NOT_SERVING
