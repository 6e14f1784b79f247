"""What runs came to, as a table and as JSON, with what they were played on."""

import math
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nanoserve_client.chaos.runner import Outcome
from nanoserve_client.chaos.runs import RunRecord
from nanoserve_client.chaos.verdicts import Kind

_PACKAGES = ("nanoserve", "grpcio", "protobuf", "numpy", "torch", "llguidance")
# Of the problems that are told, so that one fault in the code does not fill a page.
_MOST_TOLD = 20


def environment() -> dict[str, Any]:
    """Hardware, versions, commit of the working folder where it has one, and date."""
    return {
        "cpu": _cpu(),
        "num_cpus": len(os.sched_getaffinity(0)),
        "gpu": _gpu(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "commit": _output("git", "describe", "--always", "--dirty", "--exclude=*") or None,
        "date": date.today().isoformat(),
    }


def rows_by_fault(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """A row for each fault: how often it came, in how many runs, and what became of those runs' streams; then all."""
    names = sorted({injection.fault.name for record in records for injection in record.injections})
    rows = []
    for name in names:
        hit = [record for record in records if _num_injected(record, name)]
        rows.append(_row(name, sum(_num_injected(record, name) for record in hit), hit))
    total = sum(injection.was_injected for record in records for injection in record.injections)
    return [*rows, _row("all", total, records)]


def _row(name: str, num_injected: int, records: Sequence[RunRecord]) -> dict[str, Any]:
    verdicts = [verdict for record in records for verdict in record.verdicts]
    pauses = [pause for record in records for pause in record.pauses]
    counts = {kind.value: sum(verdict.kind is kind for verdict in verdicts) for kind in Kind}
    return {
        "fault": name,
        "injected": num_injected,
        "runs": len(records),
        "streams": len(verdicts),
        **counts,
        "runs with problems": sum(bool(record.problems) for record in records),
        "pause p50 s": round(percentile(pauses, 0.5), 3) if pauses else None,
        "pause max s": round(max(pauses), 3) if pauses else None,
    }


def _num_injected(record: RunRecord, name: str) -> int:
    return sum(i.was_injected and i.fault.name == name for i in record.injections)


def summary(outcome: Outcome) -> dict[str, Any]:
    """The outcome of runs, for JSON."""
    records = outcome.records
    gaps = [verdict.gap for r in records for verdict in r.verdicts if verdict.gap is not None]
    return {
        "rows": rows_by_fault(records),
        "num_runs": len(records),
        "num_stacks": outcome.num_stacks,
        "num_retries": sum(record.num_retries for record in records),
        "largest_gap": max(gaps, default=None),
        "median_run_seconds": round(statistics.median(r.seconds for r in records), 2) if records else None,
        "problems": _problems(outcome),
    }


def _problems(outcome: Outcome) -> list[str]:
    """Everything that was wrong, each with its run's number."""
    of_runs = [f"run {r.number}: {problem}" for r in outcome.records for problem in r.problems]
    return [*of_runs, *outcome.problems]


def rounded(value: float) -> float | None:
    """A figure at four digits after the point; None of NaN, which JSON does not know."""
    return round(value, 4) if math.isfinite(value) else None


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed; NaN of none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """Prints rows as a table that Markdown takes too; columns that are zero everywhere are left out."""
    names = [name for name in rows[0] if any(row[name] not in (0, None) for row in rows)]
    lines = [names, *([_cell(row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    for line in lines:
        cells = (
            f"{cell:>{width}}" if number else f"{cell:<{width}}"
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print(f"| {' | '.join(cells)} |")


def print_problems(found: Iterable[str]) -> None:
    """Prints problems, not too many of them."""
    told = list(found)
    for problem in told[:_MOST_TOLD]:
        print(f"PROBLEM {problem}")
    if len(told) > _MOST_TOLD:
        print(f"... and {len(told) - _MOST_TOLD} more")


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _gpu() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    return _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader") or None


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
