"""One step's account in steady decode at batch B and context C, through the services: what a step must cost and does.

Floor: the bytes a step has to read (weights, and keys and values of the context) at --bandwidth. Device, host (launch)
and idle times are the executor's own. The boundary is the round trip less the device time: of a plan's sending to each
of its results, so it holds the wait behind the plans and steps before it; what it costs the device is the idle share.
"""

import argparse
import sys
from typing import Any

from benchmarks.load import LoadClients, add_load_arguments, load_clients
from benchmarks.report import print_json, print_table, rounded
from benchmarks.server import BenchmarkError, Server, add_server_arguments, serving
from benchmarks.shapes import SHAPES, Shape, shape_of
from benchmarks.steps import Steps, steps_between
from benchmarks.watch import Reading, watched
from benchmarks.workloads import EqualWorkload, equal_prompts, largest_token_id

_STEADY = 0.98  # share of the batch that decodes in each step of a steady interval
_COLUMNS = (
    *("batch", "context", "MB", "floor_us", "device_us", "host_us", "queue_us", "idle_us", "boundary_us"),
    *("schedule_us", "step_us", "idle_share", "of_floor", "steps"),
)


def account(
    steps: Steps, seconds: float, batch: int, context: float, shape: Shape, arguments: argparse.Namespace
) -> dict[str, Any]:
    """The row of a window of steady decode; `context` is the mean number of tokens that a sequence held in it."""
    kv_values = batch * context * shape.kv_values_per_token
    num_bytes = (shape.num_step_parameters + kv_values) * arguments.bytes_per_value
    floor_us = num_bytes / (arguments.bandwidth * 1e12) * 1e6
    step_us = seconds / max(1, steps.num_steps) * 1e6
    return rounded(
        {
            "model": arguments.model_shape,
            "batch": batch,
            "context": round(context),
            "MB": num_bytes / 1e6,
            "floor_us": floor_us,
            "device_us": steps.device_ms * 1e3,
            "host_us": steps.host_ms * 1e3,
            "queue_us": steps.queue_ms * 1e3,
            "idle_us": steps.idle_ms * 1e3,
            "boundary_us": (steps.round_trip_ms - steps.device_ms) * 1e3,
            "schedule_us": steps.schedule_ms * 1e3,
            "step_us": step_us,
            "idle_share": steps.idle_share,
            "of_floor": floor_us / step_us,
            "steps": steps.num_steps,
            "tokens_per_step": steps.tokens_per_step,
        }
    )


def steady_window(readings: list[Reading], batch: int) -> tuple[Reading, Reading]:
    """The first and last reading of the longest stretch in which nearly every step gave the whole batch a token.

    The first reading is from before any of them. BenchmarkError where there is no such stretch.
    """
    best, begin = (0, 0), 0
    for index in range(1, len(readings)):
        steps = steps_between(readings[index - 1][1], readings[index][1])
        prompts_are_computed = (
            steps_between(readings[0][1], readings[index - 1][1]).num_output_tokens >= batch
        )
        if not prompts_are_computed or (steps.num_steps and steps.tokens_per_step < _STEADY * batch):
            begin = index
        best = max(best, (begin, index), key=lambda span: _num_steps(readings, span))
    if not _num_steps(readings, best):
        raise BenchmarkError("no steady decode was seen: raise --output-tokens")
    return readings[best[0]], readings[best[1]]


def _num_steps(readings: list[Reading], span: tuple[int, int]) -> int:
    return readings[span[1]][1].num_steps - readings[span[0]][1].num_steps


def measure(
    server: Server, clients: LoadClients, batch: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """One batch: a short warm-up, then all its requests, while the load is read again and again."""
    shape = shape_of(arguments.model_shape)
    largest = largest_token_id(shape.vocab_size)
    warm_up = EqualWorkload(arguments.context, 16, largest)
    clients.run(equal_prompts(warm_up, batch, batch))
    workload = EqualWorkload(arguments.context, arguments.output_tokens, largest)
    prompts = equal_prompts(workload, batch, batch)
    _, readings = watched(server, lambda: clients.run(prompts))
    (begin, first), (end, last) = steady_window(readings, batch)
    generated = (first.num_output_tokens + last.num_output_tokens) / 2 - readings[0][1].num_output_tokens
    context = arguments.context + generated / batch
    return account(steps_between(first, last), end - begin, batch, context, shape, arguments)


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_server_arguments(parser)
    add_load_arguments(parser)
    for name, kind, number, text in (
        ("context", int, 1024, "prompt tokens of each sequence"),
        ("output-tokens", int, 1024, "output tokens of each sequence"),
        ("bandwidth", float, 4.3, "what the memory reads, TB/s"),
        ("bytes-per-value", int, 2, "of weights, keys and values: 2 for bfloat16, 4 for float32"),
    ):
        text += " (default: %(default)s)"
        parser.add_argument(f"--{name}", type=kind, default=number, metavar="N", help=text)
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1, 8, 64, 256], metavar="N", help="batch sizes"
    )
    arguments = parser.parse_args()
    executor_flags = ["--max-model-len=4096"] if arguments.model_shape in SHAPES else []
    with (
        serving(arguments, executor_flags, ["--no-enable-prefix-caching"]) as server,
        load_clients(server.address, arguments) as clients,
    ):
        rows = [measure(server, clients, batch, arguments) for batch in arguments.batches]
    print_table(rows, _COLUMNS)
    print_json(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
