"""Where the time to a first token goes: a long prompt alone, cold and then cached, through the services.

Medians of milliseconds, of W4's requests one after the other. From the sending to the token's coming is `latency`, and
the rest are its parts, one behind the other:

    api       outside the engine: client, gRPC, checking the request, handing it over, and the token's way back
    queue     in the engine until it is planned
    boundary  the plan's way to the executor, its launch, and the result's way back, as far as the device did not work
    device    the device's work on the request's steps

`launch`, the host's part of a step on the executor, is in `boundary` and, where it goes on after the device has begun,
in `device`.
"""

import argparse
import sys
import time
from statistics import median
from typing import Any

from benchmarks import measure, workloads
from benchmarks.report import print_json, print_table
from benchmarks.server import Server, add_server_arguments, serving
from benchmarks.shapes import shape_of
from benchmarks.steps import steps_between
from benchmarks.workloads import EqualWorkload, equal_prompts, largest_token_id
from nanoserve_client import Client, GenerateOptions

_PARTS = ("api", "queue", "boundary", "device")
_COLUMNS = ("case", "prompt", "latency", *_PARTS, "launch", "steps")


def account(server: Server, client: Client, token_ids: tuple[int, ...]) -> dict[str, float]:
    """One request's parts, in milliseconds, while the server does nothing else."""
    before = server.load()
    begun = time.perf_counter()
    generation = client.generate(token_ids, options=GenerateOptions(max_tokens=1, ignore_eos=True))
    latency = time.perf_counter() - begun
    steps, timing = steps_between(before, server.load()), generation.timing
    device, queue = steps.device_ms * steps.num_steps, timing.queue_seconds * 1e3
    inside = timing.first_token_seconds * 1e3
    return {
        "latency": latency * 1e3,
        "api": latency * 1e3 - inside,
        "queue": queue,
        "boundary": inside - queue - device,
        "device": device,
        "launch": steps.host_ms * steps.num_steps,
        "steps": steps.num_steps,
    }


def rows(server: Server, workload: EqualWorkload, reps: int) -> list[dict[str, Any]]:
    """Cold and warm: each prompt is asked twice, the first two prompts being the warm-up."""
    found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    with Client(server.address) as client:
        for rep in range(reps + 2):
            (prompt,) = equal_prompts(workload, 1, rep)
            for accounts in found.values():
                accounts.append(account(server, client, prompt.token_ids))
    return [
        {"case": case, "prompt": workload.num_prompt_tokens}
        | {name: round(median(entry[name] for entry in accounts[2:]), 3) for name in accounts[0]}
        for case, accounts in found.items()
    ]


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_server_arguments(parser)
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        nargs="+",
        default=[workloads.W4.num_prompt_tokens],
        metavar="N",
        help="lengths of the prompts (default: %(default)s)",
    )
    parser.add_argument(
        "--reps",
        type=int,
        default=9,
        metavar="N",
        help="prompts of a length that count (default: %(default)s)",
    )
    arguments = parser.parse_args()
    largest = largest_token_id(shape_of(arguments.model_shape).vocab_size)
    executor_flags = measure.executor_flags("W4", arguments.model_shape)
    with serving(arguments, executor_flags, measure.scheduler_flags("W4")) as server:
        lines = [
            row
            for length in arguments.prompt_tokens
            for row in rows(server, EqualWorkload(length, 1, largest), arguments.reps)
        ]
    print_table(lines, _COLUMNS)
    print_json(lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
