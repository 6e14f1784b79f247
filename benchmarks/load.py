"""The load on a server: client processes beside it, so that no one client is the bottleneck, and what they saw."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.server import BenchmarkError
from benchmarks.workloads import TEMPERATURE, Prompt

_CLIENT = Path(__file__).with_name("load_client.py")
_HEAD_START_SECONDS = 0.05  # until every client has read the moment to begin
_MOST_CLIENTS = 8


@dataclass(frozen=True, slots=True)
class Stream:
    """One request as its client saw it; times are of the machine's monotonic clock, in seconds."""

    sent: float
    arrivals: tuple[float, ...]
    """Of the messages that bring tokens."""
    num_tokens: tuple[int, ...]
    """How many each brought."""

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.arrivals[0] - self.sent

    @property
    def latency(self) -> float:
        """Seconds to the last token."""
        return self.arrivals[-1] - self.sent


@dataclass(frozen=True, slots=True)
class Outcome:
    """All streams of a job."""

    streams: tuple[Stream, ...]
    num_clients: int

    @property
    def seconds(self) -> float:
        """From the first request's sending to the last token."""
        return max(s.arrivals[-1] for s in self.streams) - min(s.sent for s in self.streams)

    @property
    def num_output_tokens(self) -> int:
        """Of all streams."""
        return sum(sum(stream.num_tokens) for stream in self.streams)

    @property
    def num_messages(self) -> int:
        """Messages that brought tokens."""
        return sum(len(stream.arrivals) for stream in self.streams)


class LoadClients:
    """Client processes, kept with their connections from job to job."""

    def __init__(self, address: str, num_clients: int, streams_per_connection: int) -> None:
        command = [
            *(sys.executable, str(_CLIENT), f"--address={address}"),
            f"--streams-per-connection={streams_per_connection}",
        ]
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(num_clients)
        ]

    def run(self, prompts: Sequence[Prompt], concurrency: int | None = None) -> Outcome:
        """Has all prompts answered, at most `concurrency` at a time (None: all at once); blocks until they are.

        BenchmarkError where a client fails or a stream ends short of its tokens.
        """
        num_slots = concurrency or len(prompts)
        processes = self._processes[: min(len(self._processes), num_slots)]
        for process, (own_slots, own_prompts) in zip(
            processes, shares(prompts, num_slots, len(processes)), strict=True
        ):
            job = {
                "prompts": [asdict(prompt) for prompt in own_prompts],
                "num_slots": own_slots,
                "temperature": TEMPERATURE,
            }
            _write(process, json.dumps(job))
        for process in processes:
            _read(process)
        begin = time.monotonic() + _HEAD_START_SECONDS
        for process in processes:
            _write(process, repr(begin))
        streams = [_stream(entry) for process in processes for entry in json.loads(_read(process))]
        outcome = Outcome(tuple(streams), len(processes))
        wanted = sum(prompt.num_output_tokens for prompt in prompts)
        if outcome.num_output_tokens != wanted:
            raise BenchmarkError(f"{outcome.num_output_tokens} output tokens came, {wanted} were asked for")
        return outcome

    def stop(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.kill()
            process.communicate()


def shares(prompts: Sequence[Prompt], num_slots: int, num_clients: int) -> list[tuple[int, list[Prompt]]]:
    """What each client gets: its number of slots, and prompts in proportion to them, so that all end together."""
    slots: list[list[Prompt]] = [list(prompts[slot::num_slots]) for slot in range(num_slots)]
    return [
        (len(own), [prompt for slot in own for prompt in slot])
        for own in (slots[client::num_clients] for client in range(num_clients))
    ]


def _stream(entry: dict[str, Any]) -> Stream:
    return Stream(entry["sent"], tuple(entry["arrivals"]), tuple(entry["num_tokens"]))


def _write(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        raise BenchmarkError("a client process has ended; its error is above") from None


def _read(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise BenchmarkError("a client process has ended; its error is above")
    return line


@contextmanager
def load_clients(address: str, arguments: argparse.Namespace) -> Iterator[LoadClients]:
    """The client processes that the command line asks for."""
    clients = LoadClients(address, arguments.clients, arguments.streams_per_connection)
    try:
        yield clients
    finally:
        clients.stop()


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the client processes."""
    num_clients = max(1, min(_MOST_CLIENTS, len(os.sched_getaffinity(0)) // 2))
    for name, number, text in (
        ("clients", num_clients, "client processes"),
        ("streams-per-connection", 4, "streams that share a connection"),
    ):
        text += " (default: %(default)s)"
        parser.add_argument(f"--{name}", type=int, default=number, metavar="N", help=text)
