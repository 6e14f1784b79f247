"""What every benchmark prints in the same way: tables, percentiles, and what the figures were measured with."""

import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("grpcio", "protobuf", "numpy", "torch", "triton")


def environment() -> dict[str, Any]:
    """What the figures were measured with: hardware, versions, commit and date."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "gpu": _gpu(),
        "cpu": models[0].partition(":")[2].strip() if models else platform.machine(),
        "num_cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "commit": _output("git", "describe", "--always", "--dirty", "--exclude=*") or "unknown",
        "date": date.today().isoformat(),
    }


def _gpu() -> str | None:
    """Names of the GPUs and the driver's version; None where nvidia-smi finds none."""
    if shutil.which("nvidia-smi") is None:
        return None
    return _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader") or None


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "; ".join(done.stdout.split("\n")).strip("; ") if done.returncode == 0 else ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed (nearest rank); NaN of none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def print_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Prints the rows' columns, right-aligned under their names."""
    cells = [columns, *([_cell(row.get(name)) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)), flush=True)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e4 else _plain(value)


def _plain(value: Any) -> str:
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def print_json(rows: Sequence[dict[str, Any]]) -> None:
    """Prints the last line of every benchmark: its rows and what they were measured with, as JSON."""
    print(json.dumps({"rows": rows} | environment()), flush=True)


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its figures at four digits after the point, and what is no number (NaN) as None."""
    return {key: _rounded(value) for key, value in row.items()}


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return round(value, 4) if math.isfinite(value) else None
