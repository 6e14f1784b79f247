"""What the device can do at best: a large matrix product, and a large copy. Prints one JSON line.

In the types that the executor takes: bfloat16 on a GPU, float32 on a CPU. The best of `--reps`, inputs random.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable

import torch

_SIZES = {"cuda": (8192, 2**31), "cpu": (1024, 2**27)}  # side of the matrices, values copied


def seconds_of(job: Callable[[], object], device: str, reps: int) -> float:
    """The shortest of so many runs, after one that does not count."""
    best = float("inf")
    for number in range(reps + 1):
        begun = time.perf_counter()
        job()
        if device == "cuda":
            torch.cuda.synchronize()
        if number:
            best = min(best, time.perf_counter() - begun)
    return best


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=tuple(_SIZES), default="cpu")
    parser.add_argument("--reps", type=int, default=30)
    arguments = parser.parse_args()
    device = arguments.device
    side, num_values = _SIZES[device]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = seconds_of(lambda: one @ other, device, arguments.reps)
    source = torch.zeros(num_values, device=device, dtype=dtype).normal_()
    target = torch.empty_like(source)
    copy = seconds_of(lambda: target.copy_(source), device, arguments.reps)
    num_bytes = 2 * source.element_size() * num_values  # read and written
    row = {"gflops": round(2 * side**3 / product / 1e9, 1), "gb_s": round(num_bytes / copy / 1e9, 1)}
    print(json.dumps(row | {"dtype": str(dtype).removeprefix("torch."), "matrix": side}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
