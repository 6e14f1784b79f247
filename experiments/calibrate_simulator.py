"""How well the simulator tells what this machine does: record, calibrate, simulate, compare.

    python experiments/calibrate_simulator.py --out experiments/profiles/mine.json

Serves made-up requests with the shipped model and `--record`, as they arrive and then all at once, and calibrates a
profile from the recording. Then it serves others, which the profile has not seen, simulates the same, and prints both
side by side. Served latencies are the client's, so they hold what the simulator leaves out: tokenisation, the API, the
network.
"""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from nanoserve_client import AsyncClient, Delta
from nanoserve_client.supervisor import LocalServer
from scheduler_svc.simulate.trace import TraceRequest, to_line

PROMPT_LENGTHS, OUTPUT_LENGTHS = (10, 40, 150, 300), (8, 30, 60)
_NUM_TOKEN_IDS = 700  # of the shipped model's 768, without its special ones
# (what, the simulator's figure, percentile of it)
FIGURES = (
    ("output tokens/s", "output_tokens_per_second", None),
    ("TTFT ms, mean", "ttft_ms", "mean"),
    ("TTFT ms, p50", "ttft_ms", "p50"),
    ("TTFT ms, p90", "ttft_ms", "p90"),
    ("TPOT ms, p50", "tpot_ms", "p50"),
    ("TPOT ms, p90", "tpot_ms", "p90"),
    ("latency ms, p50", "latency_ms", "p50"),
)


@dataclass(frozen=True, slots=True)
class Served:
    """One answer; times in seconds since the first arrival was due."""

    sent: float
    first: float
    last: float
    num_tokens: int


def make_traces(seed: int, rate: float, seconds: float) -> dict[str, list[TraceRequest]]:
    """Requests that share no prefix: with Poisson arrivals, and all at once, where throughput is the executor's."""
    at_once = make_trace(seed + 100, rate, seconds)
    return {
        f"{rate:g} requests/s": make_trace(seed, rate, seconds),
        "all at once": [replace(request, arrival_seconds=0.0) for request in at_once],
    }


def make_trace(seed: int, rate: float, seconds: float) -> list[TraceRequest]:
    """Poisson arrivals."""
    random = np.random.default_rng(seed)
    times = np.cumsum(random.exponential(1 / rate, int(rate * seconds)))
    return [
        TraceRequest(
            arrival_seconds=round(float(at - times[0]), 4),
            num_prompt_tokens=(length := int(random.choice(PROMPT_LENGTHS))),
            num_output_tokens=int(random.choice(OUTPUT_LENGTHS)),
            prompt_token_ids=tuple(random.integers(0, _NUM_TOKEN_IDS, length).tolist()),
        )
        for at in times
    ]


async def ask(client: AsyncClient, request: TraceRequest, begun: float) -> Served:
    """Sends a request when it is due, and times its answer."""
    await asyncio.sleep(max(0.0, begun + request.arrival_seconds - time.perf_counter()))
    assert request.prompt_token_ids is not None
    sent, first = time.perf_counter(), 0.0
    stream = client.stream(
        list(request.prompt_token_ids), max_tokens=request.num_output_tokens, ignore_eos=True, temperature=0
    )
    async with stream:
        async for event in stream:
            if isinstance(event, Delta):
                first = first or time.perf_counter()
    return Served(sent - begun, first - begun, time.perf_counter() - begun, request.num_output_tokens)


async def play(address: str, traces: Iterable[list[TraceRequest]]) -> list[list[Served]]:
    """Serves one trace after the other, behind a few tokens that warm the executor up."""
    async with AsyncClient(address) as client:
        await client.generate([1, 2, 3], max_tokens=8, ignore_eos=True)
        answers = []
        for trace in traces:
            begun = time.perf_counter()
            answers.append(await asyncio.gather(*(ask(client, request, begun) for request in trace)))
        return answers


def serve(traces: Iterable[list[TraceRequest]], *scheduler_flags: str) -> list[list[Served]]:
    """Starts both services, plays the traces, stops them."""
    with LocalServer(scheduler_flags=scheduler_flags, log_level="error") as server:
        return asyncio.run(play(server.address, traces))


def figures_of(answers: list[Served]) -> dict[str, Any]:
    """The client's figures under the simulator's names."""
    sent, first, last = (np.array([getattr(a, name) for a in answers]) for name in ("sent", "first", "last"))
    counts = np.array([answer.num_tokens for answer in answers])
    values = {
        "ttft_ms": (first - sent) * 1e3,
        "tpot_ms": ((last - first) / (counts - 1))[counts > 1] * 1e3,
        "latency_ms": (last - sent) * 1e3,
    }
    found: dict[str, Any] = {
        name: {
            "mean": float(column.mean()),
            "p50": float(np.median(column)),
            "p90": float(np.percentile(column, 90)),
        }
        for name, column in values.items()
    }
    return found | {"output_tokens_per_second": float(counts.sum() / last.max())}


def nanoserve(*words: str) -> dict[str, Any]:
    """Runs a subcommand of `nanoserve`; returns the JSON object that it prints."""
    command = [sys.executable, "-m", "nanoserve_client", *words, "--json"]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    )
    return found


def source(machine: str, rate: float, seconds: float) -> str:
    """Where the figures of the profile come from."""
    versions = f"Python {platform.python_version()}, torch {version('torch').partition('+')[0]}"
    return (
        f"measured: the demo model in float32 on {machine}, {versions}, {datetime.now(UTC):%Y-%m-%d}, "
        f"experiments/calibrate_simulator.py --rate {rate:g} --seconds {seconds:g}"
    )


def simulate(trace: list[TraceRequest], profile: Path, folder: Path) -> dict[str, Any]:
    """The simulator's figures of a trace."""
    path = folder / "trace.jsonl"
    path.write_text("".join(f"{to_line(request)}\n" for request in trace), encoding="utf-8")
    return nanoserve("simulate", f"--trace={path}", f"--executor-profile={profile}", "--ignore-eos")


def compare(load: str, served: dict[str, Any], simulated: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each figure; the error is (simulated - served) / served."""
    rows = []
    for figure, name, part in FIGURES:
        pair = [found[name] if part is None else found[name][part] for found in (served, simulated)]
        row = {"load": load, "figure": figure, "served": pair[0], "simulated": pair[1]}
        rows.append(row | {"error": pair[1] / pair[0] - 1})
    return rows


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="PROFILE", help="the profile to write")
    parser.add_argument("--rate", type=float, default=3.0, help="requests a second (default %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="length of each trace (default %(default)s)"
    )
    machine = f"{os.cpu_count()} cores of {platform.machine()}"
    parser.add_argument("--machine", default=machine, help="what the profile calls it (default %(default)s)")
    arguments = parser.parse_args()
    rate, seconds = arguments.rate, arguments.seconds
    with tempfile.TemporaryDirectory() as folder:
        recording = Path(folder) / "run.rec"
        print("serving and recording ...", file=sys.stderr)
        serve(make_traces(1, rate, seconds).values(), f"--record={recording}")
        calibration = nanoserve(
            "calibrate",
            f"--recording={recording}",
            f"--out={arguments.out}",
            f"--source={source(arguments.machine, rate, seconds)}",
        )
        print("serving other requests, and simulating them ...", file=sys.stderr)
        loads = make_traces(2, rate, seconds)
        rows = []
        for (load, trace), answers in zip(loads.items(), serve(loads.values()), strict=True):
            rows += compare(load, figures_of(answers), simulate(trace, arguments.out, Path(folder)))
    print("| load | figure | served | simulated | error |\n|---|---|---|---|---|")
    for row in rows:
        values = f"{row['served']:.1f} | {row['simulated']:.1f} | {row['error']:+.0%}"
        print(f"| {row['load']} | {row['figure']} | {values} |")
    print(json.dumps({"figures": rows, "calibration": calibration}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
