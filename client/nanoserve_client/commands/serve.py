"""`nanoserve serve`: both processes on this machine, under supervision."""

import argparse
import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from nanoserve_client.commands.shared import address_argument
from nanoserve_client.connection import DEFAULT_ADDRESS
from nanoserve_client.errors import ServerStartError
from nanoserve_client.forward import LOG_LEVELS, LogForwarder
from nanoserve_client.supervisor import LocalServer

DEFAULT_DRAIN_SECONDS = 30.0
# What a process may need beyond the drain to let go of its device and end.
_END_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class ServiceFlag:
    """A flag that is passed on as it stands; without `metavar` it takes no value."""

    name: str
    metavar: str | None = None


# Which service takes which flag. What each means, and which values it takes, the service's own --help says.
BOTH_FLAGS = (ServiceFlag("--max-num-batched-tokens", "N"),)
EXECUTOR_FLAGS = (
    ServiceFlag("--device", "NAME"),
    ServiceFlag("--dtype", "NAME"),
    ServiceFlag("--tensor-parallel-size", "N"),
    ServiceFlag("--all-reduce", "NAME"),
    ServiceFlag("--attention-backend", "NAME"),
    ServiceFlag("--enforce-eager"),
    ServiceFlag("--no-resident-decode"),
    ServiceFlag("--load-format", "NAME"),
    ServiceFlag("--seed", "N"),
    ServiceFlag("--verify"),
    ServiceFlag("--profile-dir", "DIR"),
    ServiceFlag("--no-watchdog"),
    ServiceFlag("--block-size", "N"),
    ServiceFlag("--num-kv-blocks", "N"),
    ServiceFlag("--gpu-memory-utilization", "X"),
    ServiceFlag("--max-num-seqs", "N"),
    ServiceFlag("--max-model-len", "N"),
    ServiceFlag("--max-num-decode-steps", "N"),
    ServiceFlag("--max-plans-in-flight", "N"),
    ServiceFlag("--virtual"),
    ServiceFlag("--virtual-step-ms", "X"),
    ServiceFlag("--virtual-token-us", "X"),
    ServiceFlag("--virtual-kv-token-ns", "X"),
    ServiceFlag("--virtual-vocab-size", "N"),
    ServiceFlag("--virtual-poison"),
)
SCHEDULER_FLAGS = (
    ServiceFlag("--served-model-name", "NAME"),
    ServiceFlag("--batching", "NAME"),
    ServiceFlag("--pipeline-depth", "N"),
    ServiceFlag("--api-workers", "N"),
    ServiceFlag("--max-plan-ms", "X"),
    ServiceFlag("--max-queue-size", "N"),
    ServiceFlag("--max-queue-tokens", "N"),
    ServiceFlag("--priority-aging-seconds", "SECONDS"),
    ServiceFlag("--kv-allocation", "HOW"),
    ServiceFlag("--no-kv-cache"),
    ServiceFlag("--no-enable-prefix-caching"),
    ServiceFlag("--no-enable-chunked-prefill"),
    ServiceFlag("--executor-loss-timeout", "SECONDS"),
    ServiceFlag("--executor-loss-grace", "SECONDS"),
    ServiceFlag("--drain-timeout", "SECONDS"),
    ServiceFlag("--record", "F"),
    ServiceFlag("--metrics-listen", "ADDR"),
    ServiceFlag("--otlp-traces-endpoint", "URL"),
    ServiceFlag("--api-key-file", "F"),
    ServiceFlag("--tls-cert", "F"),
    ServiceFlag("--tls-key", "F"),
    ServiceFlag("--tls-client-ca", "F"),
    ServiceFlag("--insecure"),
)
_GROUPS = (
    ("flags of both services", "nanoserve-scheduler --help describes them", BOTH_FLAGS),
    ("flags of the executor", "nanoserve-executor --help describes each", EXECUTOR_FLAGS),
    ("flags of the scheduler", "nanoserve-scheduler --help describes each", SCHEDULER_FLAGS),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's flags and those it passes on."""
    parser.epilog = (
        "Starts an executor and a scheduler, joined by a private unix socket, and starts either again when it ends.\n"
        "SIGTERM and Ctrl-C drain: the scheduler finishes its requests, then both end; a second one ends both now.\n"
        "SIGHUP, where stdin is no terminal, has the scheduler read its --api-key-file again."
    )
    parser.add_argument(
        "--model", metavar="DIR|HUB_ID", help="model directory or hub id (default: the demo checkpoint)"
    )
    parser.add_argument(
        "--listen",
        type=address_argument,
        metavar="ADDR",
        default=DEFAULT_ADDRESS,
        help="host:port or unix:PATH; port 0 picks one (default %(default)s)",
    )
    parser.add_argument(
        "--log-level",
        choices=LOG_LEVELS,
        default="info",
        help="least severe log lines to show (default %(default)s)",
    )
    for title, description, flags in _GROUPS:
        group = parser.add_argument_group(title, description)
        for flag in flags:
            if flag.metavar is None:
                group.add_argument(flag.name, action="store_true")
            else:
                group.add_argument(flag.name, metavar=flag.metavar)


def service_flags(arguments: argparse.Namespace, flags: tuple[ServiceFlag, ...]) -> list[str]:
    """Those of `flags` that were given, as a service's command line takes them."""
    given: list[str] = []
    for flag in flags:
        value = getattr(arguments, flag.name.removeprefix("--").replace("-", "_"))
        if flag.metavar is None and value:
            given.append(flag.name)
        elif flag.metavar is not None and value is not None:
            given.append(f"{flag.name}={value}")
    return given


def run(arguments: argparse.Namespace) -> int:
    """Serves until a signal; 0 then, 1 where a process had to be killed, 2 for a flag that a service refuses."""
    forwarder = LogForwarder(sys.stderr)
    server = LocalServer(
        arguments.model,
        listen=arguments.listen,
        executor_flags=service_flags(arguments, BOTH_FLAGS + EXECUTOR_FLAGS),
        scheduler_flags=service_flags(arguments, BOTH_FLAGS + SCHEDULER_FLAGS),
        grace_seconds=_drain_seconds(arguments.drain_timeout) + _END_SECONDS,
        log_level=arguments.log_level,
        log=forwarder,
    )
    try:
        # The end of a terminal is told by SIGHUP too.
        reloads = arguments.api_key_file is not None and (sys.stdin is None or not sys.stdin.isatty())
        with _obeying_signals(server, reloads=reloads):
            server.start()
            forwarder.started()
            if not server.wait(0):  # a signal may have come during the start
                print(f"nanoserve serves at {server.address}; Ctrl-C stops it", flush=True)
                server.wait()
    except ServerStartError as error:
        print(f"nanoserve serve: {error}", file=sys.stderr)
        return 2 if error.exit_status == 2 else 1
    return 1 if server.killed else 0


@contextlib.contextmanager
def _obeying_signals(server: LocalServer, *, reloads: bool) -> Iterator[None]:
    """The first SIGTERM or SIGINT drains the server, the second kills it; with `reloads`, SIGHUP reloads the keys.

    A thread reads them from a socket. An exception from a handler could come between any two steps of a wait, and a
    handler has to wait for the main thread, which nothing wakes where the kernel gave the signal to another thread.
    """
    receiving, sending = socket.socketpair()

    def obey() -> None:
        num_ends = 0
        while received := receiving.recv(1):
            if received[0] == signal.SIGHUP:
                server.reload_keys()
                continue
            num_ends += 1
            if num_ends == 1:
                server.terminate()
            else:
                server.kill()

    sending.setblocking(False)
    for number in (signal.SIGTERM, signal.SIGINT, *((signal.SIGHUP,) if reloads else ())):
        signal.signal(number, lambda *_: None)
    former = signal.set_wakeup_fd(sending.fileno(), warn_on_full_buffer=False)
    reader = threading.Thread(target=obey, name="nanoserve-signals", daemon=True)
    reader.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        sending.close()
        reader.join()
        receiving.close()


def _drain_seconds(flag: str | None) -> float:
    try:
        return DEFAULT_DRAIN_SECONDS if flag is None else float(flag)
    except ValueError:  # the scheduler will say what is wrong with it
        return DEFAULT_DRAIN_SECONDS
