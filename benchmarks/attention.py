"""How long the attention kernels take on the GPU: decode against the bandwidth of memory, prefill in TFLOP/s.

Calls run in CUDA graphs, over random keys and values in random blocks, more of them than the L2 cache holds; each case
is checked against float32 first. `--sweep` also tries other configurations. Prints tables, then one JSON line, last.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from time import monotonic

import torch
from triton.runtime.errors import OutOfResources

from benchmarks.attention_cases import NUM_KV_HEADS, Batch, Shape
from benchmarks.report import environment
from executor_svc.kernels.decode_attention import DecodeConfig, num_splits_for
from executor_svc.kernels.prefill_attention import PrefillConfig

PEAK_BYTES_PER_SECOND = 4.374e12  # an H200 reading, measured
PEAK_OPERATIONS_PER_SECOND = 781e12  # an H200 multiplying bfloat16, measured
SHORT, LONG = 1024, 8192
DECODES = [Shape(16, rows, context) for rows in (1, 16, 32, 64, 256) for context in (SHORT, LONG)] + [
    Shape(40, rows, SHORT) for rows in (1, 64, 128)
]
PREFILLS = [
    Shape(heads, rows, context, count)
    for heads in (16, 40)
    for rows, context, count in [(1, 512, 512), (1, 4096, 4096), (8, 512, 512), (1, LONG, 512)]
]
DECODE_CONFIGS = [
    DecodeConfig(*numbers)
    for numbers in [
        (32, 2, 3), (32, 2, 5), (32, 4, 3), (32, 4, 5), (64, 2, 3), (64, 4, 2), (64, 4, 3), (64, 4, 4), (64, 8, 3),
        (128, 4, 2), (128, 4, 3), (128, 8, 2), (128, 8, 3),
    ]
]  # fmt: skip
PREFILL_CONFIGS = [
    PrefillConfig(*numbers)
    for numbers in [
        (64, 32, 4, 4), (64, 64, 4, 2), (64, 64, 4, 3), (64, 128, 4, 2), (128, 64, 8, 2), (128, 64, 8, 3),
        (128, 128, 8, 2),
    ]
]  # fmt: skip
SWEEP_SECONDS = 150.0


def num_sms() -> int:
    """Multiprocessors of the device."""
    return torch.cuda.get_device_properties(torch.device("cuda")).multi_processor_count


def measure_decode(batch: Batch, num_splits: int, config: DecodeConfig | None = None) -> float:
    """Microseconds of a call."""
    least = batch.shape.kv_bytes / PEAK_BYTES_PER_SECOND
    return batch.microseconds(lambda copy: batch.decode(copy, num_splits, config), least)


def measure_prefill(batch: Batch, config: PrefillConfig | None = None) -> float:
    """Microseconds of a call."""
    least = batch.shape.operations / PEAK_OPERATIONS_PER_SECOND
    return batch.microseconds(lambda copy: batch.prefill(copy, config), least)


def decode_table() -> list[dict[str, object]]:
    """Prints and returns a row a shape, as configured by default."""
    print(f"{'decode':>24} {'splits':>6} {'us':>9} {'GB/s':>6} {'us / least us':>13}")
    rows: list[dict[str, object]] = []
    for shape in DECODES:
        splits = num_splits_for(shape.rows, NUM_KV_HEADS, shape.context, num_sms())
        us = measure_decode(Batch(shape), splits)
        rate, least = shape.kv_bytes / us / 1e3, shape.kv_bytes / PEAK_BYTES_PER_SECOND * 1e6
        print(f"{shape!s:>24} {splits:>6} {us:>9.2f} {rate:>6.0f} {us / least:>13.2f}", flush=True)
        rows.append({"shape": str(shape), "splits": splits, "us": round(us, 2), "gb_per_s": round(rate)})
    return rows


def prefill_table() -> list[dict[str, object]]:
    """Prints and returns a row a shape, as configured by default."""
    print(f"{'prefill':>24} {'us':>9} {'TFLOP/s':>8}")
    rows: list[dict[str, object]] = []
    for shape in PREFILLS:
        us = measure_prefill(Batch(shape))
        rate = shape.operations / us / 1e6
        print(f"{shape!s:>24} {us:>9.1f} {rate:>8.0f}", flush=True)
        rows.append({"shape": str(shape), "us": round(us, 1), "tflop_per_s": round(rate)})
    return rows


def best_of(shape: Shape, candidates: dict[str, Callable[[], float]], until: float) -> list[str]:
    """Prints the best five candidates by microseconds, as far as there is time, and returns them."""
    times: dict[str, float] = {}
    for name, measure in candidates.items():
        if monotonic() > until:
            print(f"{shape}: out of time after {len(times)} of {len(candidates)}")
            break
        try:
            times[name] = measure()
        except OutOfResources:
            continue
    best = [f"{times[name]:.2f} us {name}" for name in sorted(times, key=times.__getitem__)[:5]]
    print(f"{shape}:", *best, sep="\n    ", flush=True)
    return best


def sweep() -> dict[str, list[str]]:
    """The best configurations of each shape."""
    began, found = monotonic(), {}
    for index, shape in enumerate(DECODES):
        batch = Batch(shape)
        usual = num_splits_for(shape.rows, NUM_KV_HEADS, shape.context, num_sms())
        splits = sorted({max(1, usual // 4), max(1, usual // 2), usual, 2 * usual})
        decodes: dict[str, Callable[[], float]] = {
            f"{config} splits={count}": partial(measure_decode, batch, count, config)
            for config in DECODE_CONFIGS
            for count in splits
        }
        # Shapes share the time left evenly; the first of a head layout compiles for all of it.
        until = began + SWEEP_SECONDS * 0.7 * (index + 3) / (len(DECODES) + 2)
        found[str(shape)] = best_of(shape, decodes, until)
    for shape in PREFILLS:
        batch = Batch(shape)
        prefills: dict[str, Callable[[], float]] = {
            str(config): partial(measure_prefill, batch, config) for config in PREFILL_CONFIGS
        }
        found[f"prefill {shape}"] = best_of(shape, prefills, began + SWEEP_SECONDS)
    return found


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweep", action="store_true", help="also try other configurations")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/attention.py needs a CUDA device")
    report: dict[str, object] = {"decode": decode_table(), "prefill": prefill_table()}
    if arguments.sweep:
        report["sweep"] = sweep()
    print(json.dumps(report | environment()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
