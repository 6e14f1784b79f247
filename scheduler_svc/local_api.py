"""The API in the engine's own process."""

import asyncio
from collections.abc import Callable

from nanoserve.address import bound_address
from nanoserve.listening import BoundSocket, check_free
from scheduler_svc import messages as msg
from scheduler_svc.api_server import READ_OUT_SECONDS, ApiAccess, ApiServer
from scheduler_svc.frontend import Frontend, cancel_task
from scheduler_svc.model import Model
from scheduler_svc.tracing import RequestTracer


class LocalApi:
    """One server beside the engine. See Api in server.py."""

    def __init__(
        self,
        address: str,
        model: Model,
        access: ApiAccess,
        send: Callable[[msg.Command], None],
        tracer: RequestTracer | None = None,
    ) -> None:
        self.serving = asyncio.Event()
        self.frontend = Frontend(send, self._on_serving)
        self._address = address
        self._server = ApiServer(model, self.frontend, access, tracer, shares_port=False)
        self._task: asyncio.Task[None] | None = None
        self._socket: BoundSocket | None = None

    def receive(self, event: msg.Event) -> None:
        """Takes an event of the engine."""
        self.frontend.receive(event)

    async def start(self) -> str:
        """Listens."""
        check_free(self._address)
        port = await self._server.start(self._address)
        self._socket = BoundSocket(self._address)
        self._task = asyncio.ensure_future(self.frontend.run())
        return bound_address(self._address, port)

    async def wait(self) -> None:
        """Raises the bug that has stopped the API; never returns."""
        assert self._task is not None
        await asyncio.shield(self._task)

    async def drain(self, timeout_seconds: float | None) -> int:
        """Waits until no request is left; returns how many had to be ended."""
        return await self.frontend.drain(timeout_seconds)

    async def stop(self) -> None:
        """Lets streams be read to their ends, then closes."""
        self.frontend.close()
        await self._server.stop(READ_OUT_SECONDS)
        if self._task is not None:
            await cancel_task(self._task)
        if self._socket is not None:
            self._socket.remove()

    def _on_serving(self, serving: bool) -> None:
        self._server.set_serving(serving)
        if serving:
            self.serving.set()
