"""Tensor parallel for N = 1, 2, 4: throughput and where a decode step's time goes, and what a fast link would give.

    python experiments/tp_scaling.py --sizes 1 2 --batch 8

Each N serves the same sequences through both services. Steps are timed by the executor's own sums; communication is
the share of the device's time that rank 0 spends in collectives in a few profiled steps, its waiting for other ranks
included: operations of gloo, or kernels of NCCL and of peer memory (whose sums with RMSNorm behind them count in full).
Compute is the rest of the device's time, and rest what a step takes besides. On cores that the ranks share this only
tries the harness. Writes plots/tp_scaling.json, which plots/tp_scaling.py draws, with the prediction of
allreduce_model.py in it, labelled as such.
"""

import argparse
import contextlib
import gzip
import json
import os
import platform
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
from allreduce_model import NVLINK_CLASS, step_seconds

from benchmarks.shapes import NAMES, SHAPES, shape_of, write_model
from benchmarks.steps import steps_between
from nanoserve.profiles import DEVICE, Profile
from nanoserve.v1 import admin_pb2
from nanoserve.v1.admin_pb2_grpc import AdminServiceStub
from nanoserve_client import Client, NanoserveError
from nanoserve_client.supervisor import LocalServer

DATA = Path(__file__).resolve().parents[1] / "plots" / "tp_scaling.json"
_PROFILED_STEPS = 20
_COLLECTIVE_KERNELS = ("nccl", "_shot_all_reduce", "_sum_add_rms_norm_kernel", "_gather_ranks_kernel")
_PREDICTED_SIZES = (1, 2, 4, 8)
_PREDICTED_SHAPE, _PREDICTED_BATCH, _PREDICTED_CONTEXT = "14b", 32, 1024
_PREDICTED_FIXED_SECONDS = 1e-3
_SETTLE_SECONDS = 1.0


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


def load_of(address: str) -> admin_pb2.Load:
    """A server's load, with the sums that steps_between subtracts."""
    with grpc.insecure_channel(address) as channel:
        return AdminServiceStub(channel).GetLoad(admin_pb2.GetLoadRequest()).load


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
    return min(1.0, sum(span["dur"] for span in chosen) / max(1.0, device_us))


def measure(model: str | None, size: int, arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    """One N: tokens a second, and a step's parts in milliseconds."""
    flags = [
        f"--device={arguments.device}",
        f"--tensor-parallel-size={size}",
        f"--all-reduce={arguments.all_reduce}",
        f"--max-num-seqs={arguments.batch}",
        f"--profile-dir={folder}",
        *(["--load-format=dummy"] if model else []),
    ]
    server = LocalServer(model, executor_flags=flags, log_level="error")
    with server, Client(server.address) as client, decoding(client, arguments.batch, arguments.tokens):
        before, begin = load_of(server.address), time.monotonic()
        time.sleep(arguments.seconds)
        after, seconds = load_of(server.address), time.monotonic() - begin
        running = after.num_running_requests
        client.start_profile(_PROFILED_STEPS)
        time.sleep(max(2.0, 3 * seconds / max(1, after.num_steps - before.num_steps) * _PROFILED_STEPS))
        profile = client.stop_profile()
    if running < arguments.batch:
        raise SystemExit("tp_scaling: sequences ended while they were timed; give more --tokens")
    steps = steps_between(before, after)
    step_ms = seconds * 1e3 / max(1, steps.num_steps)
    communication = communication_share(profile) * steps.device_ms
    return {
        "size": size,
        "tokens_per_second": steps.num_output_tokens / seconds,
        "step_ms": step_ms,
        "compute_ms": steps.device_ms - communication,
        "communication_ms": communication,
        "rest_ms": max(0.0, step_ms - steps.device_ms),
    }


def predicted() -> dict[str, Any]:
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


def print_points(title: str, points: list[dict[str, Any]]) -> None:
    columns = ("size", "tokens_per_second", "step_ms", "compute_ms", "communication_ms", "rest_ms")
    print(f"{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for point in points:
        print(f"| {' | '.join(f'{point[name]:.4g}' for name in columns)} |")
    print()


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4], metavar="N", help="default 1 2 4")
    parser.add_argument("--model-shape", choices=NAMES, default="demo", help="default %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default %(default)s")
    parser.add_argument(
        "--all-reduce", default="auto", metavar="WAY", help="as of the executor (default auto)"
    )
    parser.add_argument("--batch", type=int, default=8, help="sequences at once (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=1900, help="tokens of each (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="timed for each N (default %(default)s)")
    parser.add_argument("--out", type=Path, default=DATA, help="default %(default)s")
    parser.add_argument("--machine", default=f"{os.cpu_count()} cores of {platform.machine()}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = None
        if arguments.model_shape in SHAPES:
            model = str(Path(folder) / "model")
            Path(model).mkdir()
            write_model(SHAPES[arguments.model_shape], Path(model))
        points = []
        for size in arguments.sizes:
            print(f"measuring N = {size} ...", file=sys.stderr)
            points.append(measure(model, size, arguments, folder))
    data = {
        "command": shlex.join(["python", "experiments/tp_scaling.py", *sys.argv[1:]]),
        "machine": arguments.machine,
        "device": arguments.device,
        "versions": f"Python {platform.python_version()}, torch {version('torch')}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "model": arguments.model_shape,
        "batch": arguments.batch,
        "all_reduce": arguments.all_reduce,
        "measured": points,
        "predicted": predicted(),
    }
    print_points(f"Measured on {arguments.machine}, {arguments.device}", points)
    print_points("Prediction, not a measurement: NVLink-class link", data["predicted"]["points"])
    arguments.out.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
