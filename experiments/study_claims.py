"""What the study claims: each ratio by the two rows that it is of, and what it was in the original."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.targets import PEERS, figures, read_rows
from experiments.store import Row

Rows = dict[str, dict[str, Row]]
"""Experiment -> case -> row; an experiment that has not run is missing."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A ratio: more is better."""

    name: str
    original: str
    target: str
    value: Callable[[Rows], float | None]
    """None where a row of the two is missing."""
    peer: Callable[[], str] = lambda: ""


def read_set(folder: Path) -> Rows:
    """All experiments of a folder; "environment" has what each was measured with. Empty where there is no folder."""
    found: Rows = {}
    for path in sorted(folder.glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["rows"]:
            found[report["experiment"]] = {row["case"]: row for row in report["rows"]}
            found.setdefault("environment", {})[report["experiment"]] = report["environment"]
    return found


def ratio(experiment: str, better: str, worse: str, figure: str = "tok_s") -> Callable[[Rows], float | None]:
    """One case's figure over another's."""

    def value(rows: Rows) -> float | None:
        cases = rows.get(experiment, {})
        if better not in cases or worse not in cases:
            return None
        return float(cases[better][figure] / cases[worse][figure])

    return value


def _prefix(length: int) -> Callable[[Rows], float | None]:
    def value(rows: Rows) -> float | None:
        row = rows.get("prefix_cache_eval", {}).get(f"caching on, {length}")
        return None if row is None else float(row["cold_ms"] / row["warm_ms"])

    return value


def _planning(steps: str) -> Callable[[Rows], float | None]:
    """Depth 2 over depth 1, with the most streams that were measured."""

    def value(rows: Rows) -> float | None:
        cases = [row for row in rows.get("planning_ahead", {}).values() if row["steps_a_plan"] == steps]
        most = max((row["streams"] for row in cases), default=0)
        by_depth = {row["depth"]: row["tok_s"] for row in cases if row["streams"] == most}
        return float(by_depth[2] / by_depth[1]) if {1, 2} <= by_depth.keys() else None

    return value


def _vllm_prefix() -> str:
    """Its cold over its warm time for the whole prompt of W4 asked again: 0.6B, then 14B."""
    rows = [row for row in read_rows(PEERS) if row.get("peer", "").startswith("vllm")]
    said = []
    for model in ("0.6b", "14b"):
        match = {"test": "prefix", "model": model}
        cold, warm = (figures(rows, match, name)[-1] for name in ("cold_ms", "warm_ms"))
        said.append(f"{cold / warm:.3g}")
    return " / ".join(said)


_BATCHING = "static_vs_continuous"
CLAIMS = (
    Claim("static over naive, equal requests", "19", "19", ratio(_BATCHING, "equal: static", "equal: naive")),
    Claim(
        "continuous over naive, equal requests",
        "",
        "",
        ratio(_BATCHING, "equal: continuous", "equal: naive"),
    ),
    Claim(
        "continuous over naive without KV cache",
        "40",
        "60",
        ratio(_BATCHING, "equal: continuous", "equal: naive, no KV cache"),
    ),
    Claim(
        "continuous over transformers without KV cache",
        "",
        "150",
        ratio(_BATCHING, "equal: continuous", "equal: transformers, no KV cache"),
    ),
    Claim(
        "continuous over transformers, one request at a time",
        "",
        "",
        ratio(_BATCHING, "equal: continuous", "equal: transformers"),
    ),
    Claim("continuous over static, W6", "2.1", "2.1", ratio(_BATCHING, "W6: continuous", "W6: static")),
    Claim(
        "paged over contiguous, sequences held",
        "",
        "3",
        ratio("paged_vs_contiguous", "paged", "contiguous", "sequences_peak"),
    ),
    Claim("new over known prefix of 1,024 tokens", "", "", _prefix(1024)),
    Claim("new over known prefix of 4,096 tokens", "7", "4.5 (0.6B), 15 (14B)", _prefix(4096), _vllm_prefix),
    Claim("new over known prefix of 16,384 tokens", "", "7 (0.6B)", _prefix(16_384)),
    Claim(
        "eager over CUDA graphs, ms a step, batch 1",
        "",
        "3",
        ratio("cuda_graphs", "eager, batch 1", "graphs, batch 1", "ms_per_step"),
    ),
    Claim(
        "layer by layer over resident layers, ms a step, batch 1",
        "",
        "",
        ratio("cuda_graphs", "graphs, batch 1", "resident, batch 1", "ms_per_step"),
    ),
    Claim("planning ahead over depth 1, one step a plan", "", "measured", _planning("one step a plan")),
    Claim(
        "planning ahead over depth 1, several steps a plan", "", "measured", _planning("several steps a plan")
    ),
)
# What is said of static and continuous beside each other: label, the original's, the row's key.
COUNTS = (
    ("padded tokens", "100 / 0", "padded_tokens"),
    ("tokens generated", "400 / 344", "output_tokens"),
    ("steps", "", "steps"),
    ("peak memory, GiB: weights and held blocks", "1.2 / 1.95 GB", "memory_gib_peak"),
)
