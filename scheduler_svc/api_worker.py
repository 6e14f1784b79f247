"""An API worker: tokenizer, streams and gRPC server in a process of their own, for the engine in another.

Started by worker_pool.py. It lives as long as the socket that joins it to the engine; signals that end a whole process
group are left to the engine's process, which drains first.
"""

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog

from nanoserve.checkpoint import CheckpointError
from nanoserve.logs import configure_logs
from nanoserve.parent import die_with_parent
from nanoserve.scheduler.v1 import worker_pb2 as pb
from nanoserve.tls import ServerTls
from scheduler_svc import messages as msg
from scheduler_svc.api_server import READ_OUT_SECONDS, ApiAccess, ApiServer
from scheduler_svc.collector import settle_collector
from scheduler_svc.frame_connection import FrameConnection
from scheduler_svc.frontend import Frontend
from scheduler_svc.model import Model, load_model
from scheduler_svc.tracing import RequestTracer, open_tracer
from scheduler_svc.worker_commands import decode_frame, encode_command
from scheduler_svc.worker_events import decode_event

_log = structlog.get_logger()


class EngineConnection:
    """A worker's end: commands go out in one frame a turn of the loop, events come in."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        """Set when the engine answers no more."""
        self.frontend = Frontend(self._send, self._on_serving)
        self._connection = FrameConnection(self._take)
        self.lost = self._connection.lost
        self._commands: list[msg.Command] = []
        self._server: ApiServer | None = None

    async def serve(
        self,
        sock: socket.socket,
        model: Model,
        address: str,
        access: ApiAccess,
        tracer: RequestTracer | None = None,
    ) -> None:
        """Serves until the engine stops, then until the streams are read. ValueError where it cannot listen."""
        self.lost.add_done_callback(_die)
        await self._connection.open(sock)
        self._server = ApiServer(model, self.frontend, access, tracer, shares_port=True)
        await self._server.start(address)
        settle_collector()
        self._connection.send(pb.WorkerFrame(listening=True).SerializeToString())
        frontend, stopping = (
            asyncio.ensure_future(self.frontend.run()),
            asyncio.ensure_future(self.stopping.wait()),
        )
        await asyncio.wait([frontend, stopping], return_when=asyncio.FIRST_COMPLETED)
        if frontend.done():
            frontend.result()  # raises the bug that ended it
        self.frontend.close()
        await self._server.stop(READ_OUT_SECONDS)

    def _on_serving(self, serving: bool) -> None:
        assert self._server is not None
        self._server.set_serving(serving)

    def _take(self, data: bytes) -> None:
        frame = decode_frame(pb.EngineFrame, data)
        if frame.ping:
            self._connection.send(pb.WorkerFrame().SerializeToString())
        for event in frame.events:
            self.frontend.receive(decode_event(event))
        if frame.stopping:
            self.stopping.set()

    def _send(self, command: msg.Command) -> None:
        if not self._commands:
            asyncio.get_running_loop().call_soon(self._flush)
        self._commands.append(command)

    def _flush(self) -> None:
        commands, self._commands = self._commands, []
        frame = pb.WorkerFrame(commands=[encode_command(command) for command in commands])
        self._connection.send(frame.SerializeToString())


def _die(lost: "asyncio.Future[str]") -> None:
    """The engine is gone, or has given this worker up: no stream can go on, and none ends better by waiting."""
    _log.error("engine lost", reason=lost.result())
    os._exit(1)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a worker; returns the exit status."""
    die_with_parent(os.environ)
    parser = argparse.ArgumentParser(prog="scheduler_svc.api_worker", description=__doc__)
    for name in ("--listen", "--model", "--name", "--log-level"):
        parser.add_argument(name, required=True)
    for name in ("--index", "--fd"):
        parser.add_argument(name, type=int, required=True)
    for name in ("--tls-cert", "--tls-key", "--tls-client-ca", "--otlp-traces-endpoint"):
        parser.add_argument(name)
    parser.add_argument("--requires-keys", action="store_true")
    arguments = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    configure_logs("scheduler", arguments.log_level)
    structlog.contextvars.bind_contextvars(worker=arguments.index)
    try:
        model = load_model(Path(arguments.model), arguments.name)
        tls = ServerTls(arguments.tls_cert, arguments.tls_key, arguments.tls_client_ca)
        access = ApiAccess(tls, arguments.requires_keys)
        tracer = open_tracer(arguments.otlp_traces_endpoint, model.name)
        asyncio.run(_serve(socket.socket(fileno=arguments.fd), model, arguments.listen, access, tracer))
    except (CheckpointError, ValueError) as error:
        print(f"nanoserve-scheduler: error: worker {arguments.index}: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(
    sock: socket.socket, model: Model, address: str, access: ApiAccess, tracer: RequestTracer | None
) -> None:
    await EngineConnection().serve(sock, model, address, access, tracer)


if __name__ == "__main__":
    sys.exit(main())
