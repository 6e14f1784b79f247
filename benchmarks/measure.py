"""What throughput.py, latency.py and targets.py share: each workload's server flags, its cases, and their flags."""

import argparse
import os
from collections.abc import Iterator
from dataclasses import replace

from benchmarks import cases, workloads
from benchmarks.load import LoadClients
from benchmarks.server import Server
from benchmarks.shapes import SHAPES, shape_of
from benchmarks.workloads import EqualWorkload, ThroughputWorkload

_THROUGHPUT = {"W1": workloads.W1, "W2": workloads.W2}
_EQUAL = {"W3": workloads.W3, "W4": workloads.W4, "W5": workloads.W5}
NAMES = (*_THROUGHPUT, *_EQUAL)
_WITH_PREFIX_CACHE = ("W4", "W5")
# More did not help on 16 cores: see docs/performance.md.
_MOST_API_WORKERS = 4


def executor_flags(workload: str, shape: str) -> list[str]:
    """How the executor is started for a workload; the demo keeps its own length."""
    longest = 8192 if workload in _WITH_PREFIX_CACHE else 4096
    return [f"--max-model-len={longest}"] if shape in SHAPES else []


def scheduler_flags(workload: str) -> list[str]:
    """How the scheduler is started for a workload."""
    num_workers = min(_MOST_API_WORKERS, len(os.sched_getaffinity(0)) // 4)
    caching = [] if workload in _WITH_PREFIX_CACHE else ["--no-enable-prefix-caching"]
    return [f"--api-workers={num_workers}", *caching]


def rows(
    workload: str, server: Server, clients: LoadClients, arguments: argparse.Namespace
) -> Iterator[cases.Row]:
    """Measures a workload case by case; each row says its workload and model. Rows of earlier runs are left out."""
    for row in _rows(workload, server, clients, arguments):
        yield {"workload": workload, "model": arguments.model_shape, **row}


def _rows(
    workload: str, server: Server, clients: LoadClients, arguments: argparse.Namespace
) -> Iterator[cases.Row]:
    if workload in _THROUGHPUT:
        requests = _throughput_workload(workload, arguments)
        yield [cases.throughput(server, clients, requests, run) for run in range(arguments.runs)][-1]
        return
    equal = _equal_workload(workload, arguments)
    if workload == "W3":
        for batch in arguments.batches:
            yield cases.decode(clients, equal, batch, arguments.reps)
    elif workload == "W4":
        yield cases.prefix(clients, equal, arguments.reps)
    else:
        for concurrency in arguments.concurrency:
            number = arguments.requests or _num_requests(concurrency)
            runs = [
                cases.online(server, clients, equal, concurrency, number, run)
                for run in range(arguments.runs)
            ]
            yield runs[-1]


def _num_requests(concurrency: int) -> int:
    return workloads.W5_NUM_REQUESTS.get(concurrency, max(32, 8 * concurrency))


def _max_token_id(arguments: argparse.Namespace) -> int:
    return workloads.largest_token_id(shape_of(arguments.model_shape).vocab_size)


def _throughput_workload(name: str, arguments: argparse.Namespace) -> ThroughputWorkload:
    workload = _THROUGHPUT[name]
    longest = arguments.longest or workload.longest
    return ThroughputWorkload(
        num_requests=arguments.requests or workload.num_requests,
        shortest=min(workload.shortest, longest),
        longest=longest,
        max_token_id=_max_token_id(arguments),
    )


def _equal_workload(name: str, arguments: argparse.Namespace) -> EqualWorkload:
    workload = _EQUAL[name]
    return replace(
        workload,
        num_prompt_tokens=arguments.prompt_tokens or workload.num_prompt_tokens,
        num_output_tokens=arguments.output_tokens or workload.num_output_tokens,
        max_token_id=_max_token_id(arguments),
    )


def add_measure_arguments(parser: argparse.ArgumentParser) -> None:
    """How often, and sizes other than the workloads' own."""
    for name, number, text in (
        ("runs", 2, "equal runs of W1, W2 and W5, each with fresh ids; the last one counts"),
        ("reps", 3, "repetitions of W3 and W4, whose median counts, after a warm-up"),
    ):
        text += " (default: %(default)s)"
        parser.add_argument(f"--{name}", type=int, default=number, metavar="N", help=text)
    group = parser.add_argument_group(
        "sizes other than the workload's own, for a quick look; no comparison with peers"
    )
    for name, text in (
        ("requests", "requests of W1, W2 and W5"),
        ("longest", "longest prompt and output of W1 and W2"),
        ("prompt-tokens", "prompt length of W3, W4 and W5"),
        ("output-tokens", "output length of W3 and W5"),
    ):
        group.add_argument(f"--{name}", type=int, metavar="N", help=text)
    group.add_argument(
        "--batches", type=int, nargs="+", default=workloads.W3_BATCHES, metavar="N", help="batch sizes of W3"
    )
    concurrencies = tuple(workloads.W5_NUM_REQUESTS)
    group.add_argument(
        "--concurrency", type=int, nargs="+", default=concurrencies, metavar="N", help="streams of W5"
    )
