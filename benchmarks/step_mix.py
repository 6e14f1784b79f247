"""What kinds of steps a run was made of, and what each cost the device: from a recording.

`--scheduler-flag=--record=F` makes one; it costs the scheduler time, so throughput is to come from another run. A step
is of decode rows alone, of prompts alone, or mixed; decode rows are counted in buckets of powers of two. Prints a
table, then one JSON line.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.report import percentile, print_json, print_table, rounded
from nanoserve.arrays import unpack_int32
from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve.executor.v1.recording_pb2 import RecordingEntry
from scheduler_svc.replay.reader import read_recording

_COLUMNS = (
    "kind",
    "decode_rows",
    "steps",
    "share",
    "prefill_tokens",
    "device_ms",
    "device_ms_p50",
    "device_share",
)

Kind = tuple[str, int]
"""The kind of a step, and the most decode rows that its bucket holds."""


def step_mix(entries: Iterable[RecordingEntry]) -> list[dict[str, Any]]:
    """A row for each kind of step and bucket; a step of several sub-steps counts once for each. Failed ones are out."""
    plans: dict[int, pb.StepPlan] = {}
    device_ms: dict[Kind, list[float]] = defaultdict(list)
    prefill_tokens: dict[Kind, int] = defaultdict(int)
    for entry in entries:
        if entry.HasField("opened"):
            plans.clear()
        elif entry.HasField("plan"):
            plans[entry.plan.step_id] = entry.plan
        elif entry.HasField("result") and entry.result.status == pb.STEP_STATUS_OK:
            result = entry.result
            plan = plans.pop(result.step_id) if result.last else plans[result.step_id]
            kind, num_tokens = _kind(plan, result.sub_step)
            device_ms[kind].append(result.timing.device_ns / 1e6)
            prefill_tokens[kind] += num_tokens
    return _rows(device_ms, prefill_tokens)


def _kind(plan: pb.StepPlan, sub_step: int) -> tuple[Kind, int]:
    """The kind of one sub-step, and its prompt tokens: prompts are computed in the first."""
    counts = unpack_int32(plan.decode_row_steps)
    num_rows = len(unpack_int32(plan.decode_rows))
    if len(counts):
        num_rows = int((counts > sub_step).sum())
    num_tokens = sum(prefill.num_tokens for prefill in plan.prefills) if sub_step == 0 else 0
    bucket = 1 << (num_rows - 1).bit_length() if num_rows else 0
    if not num_tokens:
        return ("decode", bucket), 0
    return ("mixed" if num_rows else "prefill", bucket), num_tokens


def _rows(device_ms: dict[Kind, list[float]], prefill_tokens: dict[Kind, int]) -> list[dict[str, Any]]:
    num_steps = sum(map(len, device_ms.values()))
    total_ms = sum(map(sum, device_ms.values()))
    return [
        rounded(
            {
                "kind": kind[0],
                "decode_rows": kind[1],
                "steps": len(times),
                "share": len(times) / num_steps,
                "prefill_tokens": prefill_tokens[kind] / len(times),
                "device_ms": mean(times),
                "device_ms_p50": percentile(times, 0.5),
                "device_share": sum(times) / (total_ms or 1.0),
            }
        )
        for kind, times in sorted(device_ms.items())
    ]


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recording", type=Path, metavar="F")
    rows = step_mix(read_recording(parser.parse_args().recording))
    print_table(rows, _COLUMNS)
    print_json(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
