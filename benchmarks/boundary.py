"""What the boundary costs: how long an executor waits for work behind a real scheduler with real clients.

Each case starts a virtual executor, a scheduler and client processes, all of them real processes on this machine, lets
the streams warm up and measures over a window. The executor's idle share is exact: idle / (idle + device) of all steps
in the window. Prints a table, then one JSON line, last.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.report import environment
from benchmarks.server import Server, started
from benchmarks.steps import steps_between
from nanoserve.v1 import admin_pb2

_START_SECONDS = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")
_CLIENT = Path(__file__).with_name("boundary_client.py")
_BLOCK_SIZE, _MOST_PROMPT_TOKENS = 16, 32


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured."""

    step_ms: float
    num_streams: int
    depth: int
    num_workers: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What a window showed. CPU is in seconds of processor time a second; workers and clients each as a sum."""

    idle_share: float
    steps_per_second: float
    tokens_per_second: float
    tokens_per_message: float
    scheduler_cpu: float
    worker_cpu: float
    busiest_worker_cpu: float
    executor_cpu: float
    client_cpu: float
    schedule_ms: float
    """Of a plan's result: the core's `update` and `schedule`."""
    executor_ms: float
    """Of a plan: the wait for the executor's thread, decoding, checking, launching."""
    round_trip_ms: float


@dataclass(frozen=True, slots=True)
class _Reading:
    """Everything that is counted, at one moment."""

    time: float
    load: admin_pb2.Load
    num_tokens: int
    num_messages: int
    scheduler: float
    workers: dict[int, float]
    executor: float
    clients: float


class _Clients:
    """The client processes; each is asked by a line and answers by a line."""

    def __init__(self, address: str, num_streams: int, arguments: argparse.Namespace) -> None:
        count = min(arguments.clients, num_streams)
        self.processes = [
            subprocess.Popen(
                [
                    *(sys.executable, str(_CLIENT), f"--address={address}", f"--tokens={arguments.tokens}"),
                    f"--streams={num_streams // count + (index < num_streams % count)}",
                    f"--seed={arguments.seed + 10_000 * index}",
                    f"--streams-per-connection={arguments.streams_per_connection}",
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for index in range(count)
        ]

    def read(self) -> list[int]:
        """Tokens, messages and streams with a token, of all clients, so far."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        answers = []
        for process in self.processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("a client has ended")
            answers.append(json.loads(line))
        return [sum(column) for column in zip(*answers, strict=True)]

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _children(pid: int) -> list[int]:
    """The processes that a process has started and that live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def _read(server: Server, clients: _Clients) -> _Reading:
    assert server.local is not None  # as started
    scheduler, executor = server.local.scheduler_pid, server.local.executor_pid
    load = server.load()
    now = time.monotonic()
    num_tokens, num_messages, _ = clients.read()
    return _Reading(
        now,
        load,
        num_tokens,
        num_messages,
        _cpu_seconds(scheduler),
        {pid: _cpu_seconds(pid) for pid in _children(scheduler)},
        _cpu_seconds(executor),
        sum(_cpu_seconds(process.pid) for process in clients.processes),
    )


def _difference(first: _Reading, last: _Reading) -> Measured:
    seconds = last.time - first.time
    steps = steps_between(first.load, last.load)
    num_messages = max(1, last.num_messages - first.num_messages)
    workers = [cpu - first.workers.get(pid, 0.0) for pid, cpu in last.workers.items()]
    return Measured(
        idle_share=steps.idle_share,
        steps_per_second=steps.num_steps / seconds,
        tokens_per_second=steps.num_output_tokens / seconds,
        tokens_per_message=(last.num_tokens - first.num_tokens) / num_messages,
        scheduler_cpu=(last.scheduler - first.scheduler) / seconds,
        worker_cpu=sum(workers) / seconds,
        busiest_worker_cpu=max(workers, default=0.0) / seconds,
        executor_cpu=(last.executor - first.executor) / seconds,
        client_cpu=(last.clients - first.clients) / seconds,
        schedule_ms=steps.schedule_ms,
        executor_ms=steps.queue_ms + steps.host_ms,
        round_trip_ms=steps.round_trip_ms,
    )


def _await_streams(clients: _Clients, num_streams: int) -> None:
    """Waits until each stream has got a token."""
    deadline = time.monotonic() + _START_SECONDS
    while clients.read()[2] < num_streams:
        if time.monotonic() > deadline:
            raise RuntimeError("the streams do not start")
        time.sleep(0.1)


@contextmanager
def _services(case: Case, arguments: argparse.Namespace) -> Iterator[Server]:
    """An executor and a scheduler of that case, ready."""
    num_blocks = 1 + case.num_streams * (1 + -(-(arguments.tokens + _MOST_PROMPT_TOKENS) // _BLOCK_SIZE))
    executor_flags = [
        *("--virtual", f"--virtual-step-ms={case.step_ms:g}"),
        *("--virtual-token-us=0", "--virtual-kv-token-ns=0", f"--num-kv-blocks={num_blocks}"),
        f"--max-num-seqs={max(256, case.num_streams)}",
    ]
    scheduler_flags = [f"--api-workers={case.num_workers}", f"--pipeline-depth={case.depth}"]
    with started(executor_flags, [*scheduler_flags, *arguments.scheduler_flag]) as server:
        yield server
        server.check()


def measure(case: Case, arguments: argparse.Namespace) -> Measured:
    """Runs one case."""
    with ExitStack() as stack:
        server = stack.enter_context(_services(case, arguments))
        clients = _Clients(server.address, case.num_streams, arguments)
        stack.callback(clients.stop)
        _await_streams(clients, case.num_streams)
        time.sleep(arguments.warm_up)
        first = _read(server, clients)
        time.sleep(arguments.window)
        last = _read(server, clients)
        return _difference(first, last)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__)
    num_clients = max(1, len(os.sched_getaffinity(0)) // 2 - 1)
    for name, kind, default, text in (
        ("step-ms", float, [1.0], "device time of a step"),
        ("streams", int, [64], "concurrent streams in all"),
        ("depths", int, [1, 2], "--pipeline-depth of the scheduler"),
        ("api-workers", int, [0, 1, 2], "--api-workers of the scheduler"),
    ):
        text += " (default: %(default)s)"
        result.add_argument(f"--{name}", type=kind, nargs="+", default=default, metavar="N", help=text)
    for name, kind, number, text in (
        ("clients", int, num_clients, "client processes"),
        ("streams-per-connection", int, 4, "streams that share a connection"),
        ("tokens", int, 1500, "output tokens of a request"),
        ("warm-up", float, 1.0, "seconds before the window, from when each stream has a token"),
        ("window", float, 3.0, "seconds measured"),
        ("seed", int, 0, "of the prompts and lengths"),
    ):
        text += " (default: %(default)s)"
        result.add_argument(f"--{name}", type=kind, default=number, metavar="N", help=text)
    text = "one more flag for the scheduler, as --scheduler-flag=--flag=value"
    result.add_argument("--scheduler-flag", action="append", default=[], metavar="FLAG", help=text)
    return result


_COLUMNS = (
    ("step ms", 8, "{0.step_ms:g}"),
    ("streams", 8, "{0.num_streams}"),
    ("depth", 6, "{0.depth}"),
    ("workers", 8, "{0.num_workers}"),
    ("idle %", 7, "{1.idle_share:.1%}"),
    ("steps/s", 8, "{1.steps_per_second:.0f}"),
    ("tokens/s", 9, "{1.tokens_per_second:.0f}"),
    ("tok/msg", 8, "{1.tokens_per_message:.1f}"),
    ("cpu sched", 10, "{1.scheduler_cpu:.2f}"),
    ("workers", 8, "{1.worker_cpu:.2f}"),
    ("(most)", 7, "{1.busiest_worker_cpu:.2f}"),
    ("executor", 9, "{1.executor_cpu:.2f}"),
    ("clients", 8, "{1.client_cpu:.2f}"),
    ("sched ms", 9, "{1.schedule_ms:.3f}"),
    ("exec ms", 8, "{1.executor_ms:.3f}"),
    ("trip ms", 8, "{1.round_trip_ms:.2f}"),
)


def main() -> int:
    """Runs the command line."""
    arguments = parser().parse_args()
    print("".join(f"{name:>{width}}" for name, width, _ in _COLUMNS))
    rows = []
    for values in itertools.product(
        arguments.step_ms, arguments.streams, arguments.depths, arguments.api_workers
    ):
        case = Case(*values)
        measured = measure(case, arguments)
        rows.append({key: round(value, 4) for key, value in (asdict(case) | asdict(measured)).items()})
        print("".join(f"{shape.format(case, measured):>{width}}" for _, width, shape in _COLUMNS), flush=True)
    print(json.dumps({"cases": rows} | environment()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
