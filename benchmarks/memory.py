"""What the services hold at rest: weights and KV cache by their sizes, and what the system says of each process."""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.report import print_json, print_table, rounded
from benchmarks.server import Server, add_server_arguments, serving
from benchmarks.shapes import shape_of

BYTES_PER_VALUE = {"bfloat16": 2, "float32": 4}
GIB = 2**30
_COLUMNS = (
    *("model", "device", "dtype", "weights_gib", "num_blocks", "kv_gib", "kv_tokens", "gpu_used_gib"),
    *("executor_rss_gib", "scheduler_rss_gib"),
)


def measure(server: Server, model_shape: str) -> dict[str, Any]:
    """The row of a server that this process started. Block 0, which is never given out, counts in num_blocks."""
    description, shape = server.describe(), shape_of(model_shape)
    num_bytes = BYTES_PER_VALUE.get(description.dtype, 0)  # the virtual executor holds nothing
    kv_tokens = description.num_blocks * description.block_size
    assert server.local is not None  # as it has described its executor
    return rounded(
        {
            "model": model_shape,
            "device": description.device,
            "dtype": description.dtype,
            "weights_gib": shape.num_parameters * num_bytes / GIB,
            "num_blocks": description.num_blocks,
            "kv_gib": kv_tokens * shape.kv_values_per_token * num_bytes / GIB,
            "kv_tokens": kv_tokens,
            "gpu_used_gib": gpu_used_gib(),
            "executor_rss_gib": _resident_gib(server.local.executor_pid),
            "scheduler_rss_gib": _resident_gib(server.local.scheduler_pid),
            "ready_seconds": server.ready_seconds,
        }
    )


def gpu_used_gib() -> float | None:
    """What is in use of the first GPU, by whomever; None where there is no nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout.split()[0]) / 1024 if done.returncode == 0 else None


def _resident_gib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / GIB


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_server_arguments(parser)
    arguments = parser.parse_args()
    with serving(arguments) as server:
        rows = [measure(server, arguments.model_shape)]
    print_table(rows, _COLUMNS)
    print_json(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
