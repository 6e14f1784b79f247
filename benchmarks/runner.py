"""The command line that throughput.py and latency.py are: one workload on one server, a table, a JSON line."""

import argparse
from collections.abc import Sequence

from benchmarks.load import add_load_arguments, load_clients
from benchmarks.measure import add_measure_arguments, executor_flags, rows, scheduler_flags
from benchmarks.report import print_json, print_table
from benchmarks.server import add_server_arguments, serving

_COLUMNS = {
    "throughput": (
        "requests",
        "prompt_tokens",
        "output_tokens",
        "seconds",
        "out_tok_s",
        "total_tok_s",
        "device_ms",
    ),
    "decode": ("batch", "prompt", "out", "total_s", "first_token_ms", "ms_per_step", "tok_s"),
    "prefix": ("prompt", "reps", "cold_ms", "warm_ms"),
    "online": (
        *(
            "concurrency",
            "out_tok_s",
            "ttft_ms_p50",
            "ttft_ms_p99",
            "itl_ms_mean",
            "itl_ms_p50",
            "itl_ms_p99",
        ),
        *("tpot_ms_p50", "tokens_per_message", "littles_law", "device_ms", "device_share"),
    ),
}


def run(description: str | None, names: Sequence[str]) -> int:
    """Parses the command line, which takes the workloads of these names, and measures."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--workload", choices=tuple(names), required=True)
    add_server_arguments(parser)
    add_load_arguments(parser)
    add_measure_arguments(parser)
    arguments = parser.parse_args()
    workload = arguments.workload
    flags = executor_flags(workload, arguments.model_shape), scheduler_flags(workload)
    with serving(arguments, *flags) as server, load_clients(server.address, arguments) as clients:
        measured = list(rows(workload, server, clients, arguments))
        started = {
            "ready_seconds": server.ready_seconds,
            "executor_flags": [*flags[0], *arguments.executor_flag],
            "scheduler_flags": [*flags[1], *arguments.scheduler_flag],
        }
    print_table(measured, _COLUMNS[measured[0]["test"]])
    print_json([row | started for row in measured])
    return 0
