"""The services that a benchmark drives: started for it as real processes, or running already (`--address`)."""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc

from benchmarks.shapes import NAMES, SHAPES, write_model
from nanoserve.address import CHANNEL_OPTIONS
from nanoserve.executor.v1 import executor_pb2
from nanoserve.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from nanoserve.v1 import admin_pb2
from nanoserve.v1.admin_pb2_grpc import AdminServiceStub
from nanoserve_client.supervisor import LocalServer

_CALL_SECONDS = 30.0
_START_SECONDS = 540.0
_GRACE_SECONDS = 20.0


class BenchmarkError(Exception):
    """A case could not be measured; the message is one line."""


class Server:
    """Services that serve. What needs the executor itself is there only for services that this process started."""

    def __init__(
        self,
        address: str,
        ready_seconds: float | None = None,
        local: LocalServer | None = None,
        ends: list[str] | None = None,
    ) -> None:
        """`ends` is a list that grows with what the supervisor says, which is of services that ended."""
        self.address = address
        """Where the scheduler listens."""
        self.ready_seconds = ready_seconds
        """From the start of both processes until both served; None where they were running already."""
        self.local = local
        self._ends = [] if ends is None else ends
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._admin: Any = AdminServiceStub(self._channel)

    def close(self) -> None:
        """Closes the connection; the services stay."""
        self._channel.close()

    def load(self) -> admin_pb2.Load:
        """The load of this moment."""
        request = admin_pb2.GetLoadRequest()
        answer: admin_pb2.GetLoadResponse = self._admin.GetLoad(
            request, timeout=_CALL_SECONDS, wait_for_ready=True
        )
        return answer.load

    def reset_prefix_cache(self) -> None:
        """Makes every prompt new to the server, also those of an earlier benchmark."""
        request = admin_pb2.ResetPrefixCacheRequest()
        self._admin.ResetPrefixCache(request, timeout=_CALL_SECONDS, wait_for_ready=True)

    def describe(self) -> executor_pb2.ExecutorDescription:
        """What the executor says of itself; BenchmarkError where the services are not this process's."""
        if self.local is None:
            raise BenchmarkError("the executor of a running server cannot be asked: leave --address out")
        with grpc.insecure_channel(self.local.executor_address, options=CHANNEL_OPTIONS) as channel:
            stub: Any = ExecutorServiceStub(channel)
            request = executor_pb2.DescribeRequest()
            answer: executor_pb2.DescribeResponse = stub.Describe(request, timeout=_CALL_SECONDS)
            return answer.description

    def forget_ends(self) -> None:
        """For who ends a service on purpose: what has ended so far is no reason to doubt what was measured."""
        self._ends.clear()

    def check(self) -> None:
        """BenchmarkError where a service has ended since it served: what was measured then is of its restart."""
        if self._ends:
            reason = self._ends[0]
            self._ends.clear()  # the next workload has the restarted service
            raise BenchmarkError(reason)


@contextmanager
def serving(
    arguments: argparse.Namespace, executor_flags: Sequence[str] = (), scheduler_flags: Sequence[str] = ()
) -> Iterator[Server]:
    """Services of the command line's shape and flags, which come after the given ones and so win over them."""
    with ExitStack() as stack:
        if arguments.address:
            server = Server(arguments.address)
            server.reset_prefix_cache()
        else:
            model = _model_flags(arguments.model_shape, stack)
            server = stack.enter_context(
                started(
                    [*model, *_load_flags(arguments.model_shape), *executor_flags, *arguments.executor_flag],
                    [*model, *scheduler_flags, *arguments.scheduler_flag],
                )
            )
        stack.callback(server.close)
        yield server
        server.check()


@contextmanager
def started(executor_flags: Sequence[str], scheduler_flags: Sequence[str]) -> Iterator[Server]:
    """An executor and a scheduler, processes of this machine, with a unix socket between them."""
    ends: list[str] = []

    def log(service: str, line: str) -> None:
        print(f"{service} | {line}", file=sys.stderr, flush=True)
        if service == "supervisor":
            ends.append(line)

    begun = time.monotonic()
    with LocalServer(
        executor_flags=executor_flags,
        scheduler_flags=["--drain-timeout=0", *scheduler_flags],
        start_timeout=_START_SECONDS,
        grace_seconds=_GRACE_SECONDS,
        log_level="warning",
        log=log,
    ) as local:
        yield Server(local.address, time.monotonic() - begun, local, ends)


def _model_flags(shape: str, stack: ExitStack) -> list[str]:
    if shape not in SHAPES:
        return []
    folder = stack.enter_context(TemporaryDirectory(prefix="nanoserve-shape-"))
    write_model(SHAPES[shape], Path(folder))
    return [f"--model={folder}"]


def _load_flags(shape: str) -> list[str]:
    return ["--load-format=dummy"] if shape in SHAPES else []


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say what is measured, the same for every benchmark of the services."""
    add_start_arguments(parser)
    parser.add_argument("--address", help="a server that runs already, host:port (default: start one)")


def add_start_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of a server that is always started for the measurement."""
    parser.set_defaults(address=None)
    parser.add_argument(
        "--model-shape", choices=NAMES, default="demo", help="what is served (default: %(default)s)"
    )
    for name in ("executor", "scheduler"):
        text = f"one more flag for the {name}, as --{name}-flag=--flag=value"
        parser.add_argument(f"--{name}-flag", action="append", default=[], metavar="FLAG", help=text)
