"""Tensor parallel by number of ranks: throughput and where a decode step's time goes, and what a fast link would give.

    python experiments/tp_scaling.py --model-shape 0.6b --device cuda --out plots/data/h200-0.6b

Each number serves the same sequences through both services. Steps are timed by the executor's own sums;
communication is the share of the device's time that rank 0 spends in collectives in a few profiled steps, its
waiting for other ranks included: operations of gloo, or kernels of NCCL and of peer memory (whose sums with RMSNorm
behind them count in full). Compute is the rest of the device's time, and rest what a step takes besides. On cores
that the ranks share this only tries the harness. The prediction of allreduce_model.py is a case of its own, labelled
as such.
"""

import argparse
import contextlib
import gzip
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from tempfile import TemporaryDirectory

from benchmarks.report import rounded
from benchmarks.server import Server, serving
from benchmarks.shapes import shape_of
from benchmarks.steps import steps_between
from experiments.allreduce_model import NVLINK_CLASS, step_seconds
from experiments.harness import Case, checked_run, parser
from experiments.sizes import Sizes
from experiments.store import Row, StudyError
from nanoserve.profiles import DEVICE, Profile
from nanoserve_client import Client, NanoserveError

NAME = "tp_scaling"
PREDICTION = "prediction"
_CPU_SIZES = (1, 2, 4)
_PROFILED_STEPS = 20
_COLLECTIVE_KERNELS = ("nccl", "_shot_all_reduce", "_sum_add_rms_norm_kernel", "_gather_ranks_kernel")
_PREDICTED_SIZES = (1, 2, 4, 8)
_PREDICTED_SHAPE, _PREDICTED_BATCH, _PREDICTED_CONTEXT = "14b", 32, 1024
_PREDICTED_FIXED_SECONDS = 1e-3
_SETTLE_SECONDS = 1.0


def cases(sizes: Sizes, arguments: argparse.Namespace) -> list[Case]:
    """The prediction, then one a number of ranks."""
    found = [Case(PREDICTION, {"model": _PREDICTED_SHAPE}, None, alone=lambda _: _predicted())]
    return found + [
        Case(
            f"{size} rank{'s' if size > 1 else ''}",
            {
                "size": size,
                "batch": sizes.tp_batch,
                "tokens": sizes.tp_tokens,
                "all_reduce": arguments.all_reduce,
                "seconds": arguments.seconds,
            },
            None,  # the services' flags name a folder of its own
            alone=partial(_measure, size=size, sizes=sizes),
        )
        for size in arguments.sizes or _sizes(arguments.device)
    ]


def _sizes(device: str) -> list[int]:
    """Powers of two, up to as many GPUs as there are."""
    if device == "cpu" or shutil.which("nvidia-smi") is None:
        return list(_CPU_SIZES)
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    num_gpus = len(done.stdout.splitlines())
    return [size for size in _PREDICTED_SIZES if size <= num_gpus]


def _measure(arguments: argparse.Namespace, size: int, sizes: Sizes) -> Row:
    """One number of ranks: tokens a second, and a step's parts in milliseconds."""
    with TemporaryDirectory() as folder:
        flags = [
            f"--device={arguments.device}",
            f"--tensor-parallel-size={size}",
            f"--all-reduce={arguments.all_reduce}",
            f"--max-num-seqs={sizes.tp_batch}",
            f"--max-model-len={sizes.tp_tokens + 64}",
            f"--profile-dir={folder}",
        ]
        with serving(arguments, flags) as server:
            return _timed(server, arguments.seconds, size, sizes)


def _timed(server: Server, seconds: float, size: int, sizes: Sizes) -> Row:
    batch = sizes.tp_batch
    with Client(server.address) as client, decoding(client, batch, sizes.tp_tokens):
        before, begin = server.load(), time.monotonic()
        time.sleep(seconds)
        after, seconds = server.load(), time.monotonic() - begin
        running = after.num_running_requests
        client.start_profile(_PROFILED_STEPS)
        time.sleep(max(2.0, 3 * seconds / max(1, after.num_steps - before.num_steps) * _PROFILED_STEPS))
        profile = client.stop_profile()
    if running < batch:
        raise StudyError("sequences ended while they were timed: give fewer --seconds")
    steps = steps_between(before, after)
    step_ms = seconds * 1e3 / max(1, steps.num_steps)
    communication = communication_share(profile) * steps.device_ms
    return rounded(
        {
            "size": size,
            "batch": batch,
            "tokens_per_second": steps.num_output_tokens / seconds,
            "step_ms": step_ms,
            "compute_ms": steps.device_ms - communication,
            "communication_ms": communication,
            "rest_ms": max(0.0, step_ms - steps.device_ms),
        }
    )


@contextlib.contextmanager
def decoding(client: Client, batch: int, num_tokens: int) -> Iterator[None]:
    """Keeps `batch` sequences decoding within the block, if they are long enough."""

    def generate(number: int) -> None:
        prompt = [5 + number, 6, 7]
        with contextlib.suppress(NanoserveError):  # cut off when enough has been measured
            client.generate(prompt, temperature=0.9, seed=number, max_tokens=num_tokens, ignore_eos=True)

    threads = [threading.Thread(target=generate, args=(number,), daemon=True) for number in range(batch)]
    for thread in threads:
        thread.start()
    while client.get_load().num_running_requests < batch:
        time.sleep(0.01)
    time.sleep(_SETTLE_SECONDS)
    yield


def communication_share(profile: Profile) -> float:
    """Of the device's time in the profiled steps: what collectives take, by torch's trace."""
    trace = profile.trace
    text = gzip.decompress(trace) if trace[:2] == b"\x1f\x8b" else trace
    spans = [event for event in json.loads(text)["traceEvents"] if event.get("ph") == "X"]
    kernels = [
        span
        for span in spans
        if span.get("cat") == "kernel" and any(name in span["name"] for name in _COLLECTIVE_KERNELS)
    ]
    chosen = kernels or [span for span in spans if span["name"].startswith("gloo:")]
    device_us = sum(span.end_ns - span.begin_ns for span in profile.spans if span.lane == DEVICE) / 1e3
    return float(min(1.0, sum(span["dur"] for span in chosen) / max(1.0, device_us)))


def _predicted() -> Row:
    """The curve of the analytic model."""
    points = []
    for size in _PREDICTED_SIZES:
        parts = step_seconds(
            shape_of(_PREDICTED_SHAPE),
            size,
            _PREDICTED_BATCH,
            _PREDICTED_CONTEXT,
            _PREDICTED_FIXED_SECONDS,
            NVLINK_CLASS,
        )
        total = sum(parts.values())
        row = {"size": size, "tokens_per_second": _PREDICTED_BATCH / total, "step_ms": total * 1e3}
        points.append(row | {f"{name}_ms": seconds * 1e3 for name, seconds in parts.items()})
    return {
        "label": "prediction, not a measurement",
        "model": _PREDICTED_SHAPE,
        "batch": _PREDICTED_BATCH,
        "context": _PREDICTED_CONTEXT,
        "fixed_ms": _PREDICTED_FIXED_SECONDS * 1e3,
        "link_latency_us": NVLINK_CLASS.latency * 1e6,
        "ring_overhead_us": NVLINK_CLASS.ring_overhead * 1e6,
        "link_gb_per_second": NVLINK_CLASS.bandwidth / 1e9,
        "points": points,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that are this experiment's own."""
    text = "ranks of tp_scaling (default: 1, 2, 4, 8 as far as there are GPUs; 1 2 4 on a CPU)"
    parser.add_argument("--sizes", type=int, nargs="+", metavar="N", help=text)
    parser.add_argument(
        "--all-reduce", default="auto", metavar="WAY", help="as of the executor (default auto)"
    )
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="timed for each number of ranks (default %(default)s)"
    )


def main() -> int:
    """Runs the command line."""
    command = parser(__doc__)
    add_arguments(command)
    return checked_run({NAME: cases}, command.parse_args())


if __name__ == "__main__":
    sys.exit(main())
