"""Where the device time of a profile's steps went, kernel by kernel, and what lay between the kernels.

    nanoserve profile --address ADDR --steps 50 --output trace.json.gz
    python benchmarks/kernel_account.py trace.json.gz

A kernel's time counts once: where two run at the same time, as by programmatic dependent launch, the one that ends
later has the rest. What no kernel covers between the first and the last one of a step is a gap: launches and tails.
"""

import argparse
import gzip
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import print_json, print_table

_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_COLUMNS = ("kernel", "calls", "us_a_step", "us_a_call", "share")
_LONGEST_NAME = 60


def device_events(path: Path) -> dict[int, list[dict[str, Any]]]:
    """A trace's kernels and copies by step, in order of their beginning; the first and last step may not be whole."""
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else path.open(encoding="utf-8")
    with opened as file:
        events = json.load(file)["traceEvents"]
    steps = defaultdict(list)
    for event in sorted(events, key=lambda event: event.get("ts", 0.0)):
        if event.get("cat") in _DEVICE and "step_id" in event["args"]:
            steps[event["args"]["step_id"]].append(event)
    return {step: steps[step] for step in sorted(steps)[1:-1]}


def account(events: Iterable[dict[str, Any]]) -> tuple[Counter[str], Counter[str], float]:
    """Calls and microseconds of each kernel of a step, and its span; events are in order of their beginning."""
    calls, micros, first, end = Counter[str](), Counter[str](), None, 0.0
    for event in events:
        begin, stop = event["ts"], event["ts"] + event["dur"]
        if first is None:
            first = end = begin
        name = event["name"][:_LONGEST_NAME]
        calls[name] += 1
        micros[name] += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return calls, micros, end - (first or 0.0)


def rows(path: Path) -> list[dict[str, Any]]:
    """Medians over the steps that launch what most of them do, the longest kernel first; then gaps, then the step."""
    accounts = [account(events) for events in device_events(path).values()]
    if not accounts:
        raise SystemExit(f"{path}: there are no kernels of whole steps in it; was it made on a GPU?")
    usual = Counter(frozenset(calls.items()) for calls, _, _ in accounts).most_common(1)[0][0]
    same = [entry for entry in accounts if frozenset(entry[0].items()) == usual]
    span = median(span for _, _, span in same)
    lines: list[dict[str, Any]] = []
    for name, num_calls in usual:
        micros = median(entry[1][name] for entry in same)
        lines.append(
            {"kernel": name, "calls": num_calls, "us_a_step": micros, "us_a_call": micros / num_calls}
        )
    lines.sort(key=lambda line: -line["us_a_step"])
    gaps = median(span - sum(micros.values()) for _, micros, span in same)
    num_calls = sum(num for _, num in usual)
    lines.append({"kernel": "gaps", "calls": num_calls, "us_a_step": gaps, "us_a_call": gaps / num_calls})
    lines.append({"kernel": "step", "calls": len(same), "us_a_step": span, "us_a_call": span})
    return [line | {"share": line["us_a_step"] / span} for line in lines]


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path, help="what nanoserve profile wrote on a GPU")
    lines = [
        {key: round(value, 3) if isinstance(value, float) else value for key, value in line.items()}
        for line in rows(parser.parse_args().trace)
    ]
    print_table(lines, _COLUMNS)
    print_json(lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
