"""What each kernel of the CUDA path takes, in CUDA graphs, beside the time that its bytes need at the memory's speed.

Weights rotate through more memory than the L2 cache holds. Linear layers of few tokens stand beside torch's with the
separate kernels around them. Needs a GPU. Prints a table, then one JSON object, last. `--sweep` instead tries
configurations of the linear layers, as many as two minutes allow.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from statistics import median
from time import perf_counter

import torch
import triton

from benchmarks.kernel_cases import (
    MODELS,
    Call,
    Layer,
    all_cases,
    default_config,
    fused_calls,
    layers,
    weights_of,
)
from benchmarks.report import environment
from executor_svc.kernels.small_linear import LinearConfig

BYTES_PER_SECOND = 4.374e12
"""What an H200 was measured to read."""
SWEEP_SECONDS = 100


def seconds_a_call(calls: Sequence[Call]) -> float:
    """Median over replays of a graph in which the calls take turns, at least 40 of them."""
    turns = list(calls) * -(-40 // len(calls))
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in turns:
            call()
    graph.replay()
    times: list[float] = []
    for _ in range(7):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / len(turns))
    return median(times)


def measure_all() -> list[dict[str, object]]:
    """Prints the table; returns its lines."""
    print(f"{'kernel':<42} {'model':>5} {'n':>5} {'us':>8} {'GB/s':>7} {'x bytes':>8}")
    lines: list[dict[str, object]] = []
    for case in all_cases():
        seconds = seconds_a_call(case.calls)
        rate, ratio = case.num_bytes / seconds / 1e9, seconds / (case.num_bytes / BYTES_PER_SECOND)
        print(
            f"{case.kernel:<42} {case.model:>5} {case.num_tokens:>5} {seconds * 1e6:>8.2f} {rate:>7.0f}"
            f" {ratio:>8.2f}",
            flush=True,
        )
        lines.append(
            {
                "kernel": case.kernel,
                "model": case.model,
                "n": case.num_tokens,
                "us": round(seconds * 1e6, 2),
                "ratio": round(ratio, 3),
            }
        )
    return lines


def candidates(layer: Layer) -> list[LinearConfig]:
    """The chosen configuration, then others, nearest first."""
    chosen = default_config(layer)
    others = [
        replace(chosen, block_n=block_n, block_k=block_k, split_k=split_k, num_stages=num_stages)
        for split_k, num_stages, block_n, block_k in product(
            (1, 2, 4, 8), (3, 4, 5), (16, 32, 64), (128, 256, 512)
        )
        if not (layer.gated and split_k > 1)
    ]
    others += [replace(chosen, prefetch=prefetch) for prefetch in (0, 256, 512, 1024)]
    others += [replace(chosen, num_warps=num_warps) for num_warps in (2, 8)]

    def distance(config: LinearConfig) -> int:
        names = ("block_n", "block_k", "split_k", "num_stages", "num_warps", "prefetch")
        return sum(getattr(config, name) != getattr(chosen, name) for name in names)

    return sorted(dict.fromkeys([chosen, *others]), key=distance)


def sweep() -> list[dict[str, object]]:
    """Prints configurations of each layer, 8 tokens, best first; the layers take turns until the time is up."""
    end = perf_counter() + SWEEP_SECONDS
    every = [layer for model in MODELS for layer in layers(model)]
    found: list[dict[str, object]] = []
    for index, layer in enumerate(every):
        weights, results = weights_of(layer), []
        share = end - (end - perf_counter()) * (len(every) - index - 1) / (len(every) - index)
        for config in candidates(layer):
            if perf_counter() > share:
                break
            try:
                results.append((seconds_a_call(fused_calls(layer, 8, weights, config)), config))
            except triton.runtime.errors.OutOfResources:
                continue
        results.sort(key=lambda result: result[0])
        for seconds, config in results[:6]:
            print(f"{layer.model:>5} {layer.name:<24} {seconds * 1e6:8.2f} us  {config}", flush=True)
            found.append(
                {"layer": layer.name, "model": layer.model, "us": seconds * 1e6, "config": str(config)}
            )
    return found


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweep", action="store_true", help="try configurations of the linear layers")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/kernels.py needs a CUDA device", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    with torch.inference_mode():
        lines = sweep() if arguments.sweep else measure_all()
    print(json.dumps({"sweep" if arguments.sweep else "kernels": lines} | environment()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
