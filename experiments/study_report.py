"""Fills the tables of docs/study.md and README.md from the JSON in plots/data, and says nothing that is not there.

    python experiments/study_report.py                # writes the tables; --check only says whether they are up to date
    python experiments/study_report.py --data DIR     # prints the ratios of a folder of one's own

A table stands between the lines `<!-- table: NAME -->` and `<!-- end of table -->`.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.store import Row
from experiments.study_claims import CLAIMS, COUNTS, Rows, read_set

_REPOSITORY = Path(__file__).resolve().parents[1]
DATA = _REPOSITORY / "plots" / "data"
PAGES = (_REPOSITORY / "docs" / "study.md", _REPOSITORY / "README.md")
SETS = {"h200-0.6b": "H200, 0.6B", "h200-14b": "H200, 14B", "cpu-demo": "demo, CPU"}
PICTURED = ("h200-0.6b", "cpu-demo")
"""Whose pictures are shown, in this order: of the first that has the experiment."""
OWN_PICTURES = {"h200-14b": "14b"}
"""Sets that have their pictures beside those, and the folder of plots/ where they are."""
_MISSING = "not yet"
_NEVER = {("cuda_graphs", "cpu-demo"): "a CPU has none"}
"""By experiment and set, why there is nothing to measure."""
_TABLE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)

# Experiment -> its picture in plots/, and what a reader who cannot see it is told.
_FIGURES = {
    "roofline": (
        "roofline",
        "Operations a second over operations a byte, decode and prefill, under the ceilings",
    ),
    "static_vs_continuous": (
        "throughput_comparison",
        "Tokens a second of naive, static and continuous batching",
    ),
    "paged_vs_contiguous": (
        "paged_vs_contiguous",
        "Sequences held and share of unused slots by kind of allocation",
    ),
    "prefix_cache_eval": ("prefix_cache_latency", "Latency by length of a shared prefix, new and known"),
    "tp_scaling": ("tp_scaling", "A decode step by number of ranks, measured, and predicted"),
    "cuda_graphs": ("cuda_graphs", "Milliseconds a decode step by batch, with CUDA graphs and eager"),
    "planning_ahead": ("planning_ahead", "Tokens a second by number of plans in flight"),
    "ablation": ("ablation", "Tokens a second with each switch on and off"),
    "crash_cost": ("crash_cost", "Seconds of the same requests, undisturbed and with the executor killed"),
}
# Columns of an experiment's own table: (the row's key, its heading).
_COLUMNS: dict[str, tuple[tuple[str, str], ...]] = {
    "roofline": (
        ("case", "what"),
        ("operations_per_byte", "operations a byte"),
        ("gflops", "GFLOP/s"),
        ("gb_s", "GB/s"),
        ("device_ms", "device ms"),
    ),
    "static_vs_continuous": (
        ("case", "what"),
        ("requests", "requests"),
        ("output_tokens", "output tokens"),
        ("tok_s", "tokens/s"),
        ("ttft_ms_p50", "TTFT p50, ms"),
        ("padded_tokens", "padded tokens"),
        ("memory_gib_peak", "peak GiB"),
    ),
    "paged_vs_contiguous": (
        ("case", "allocation"),
        ("sequences_peak", "sequences at once"),
        ("unused_share", "unused share of held slots"),
        ("tok_s", "tokens/s"),
        ("preemptions", "preemptions"),
    ),
    "prefix_cache_eval": (
        ("case", "what"),
        ("cold_ms", "new prefix, ms"),
        ("warm_ms", "known prefix, ms"),
        ("cold_over_warm", "ratio"),
    ),
    "tp_scaling": (
        ("case", "what"),
        ("tokens_per_second", "tokens/s"),
        ("step_ms", "step, ms"),
        ("communication_ms", "communication, ms"),
    ),
    "cuda_graphs": (
        ("case", "what"),
        ("ms_per_step", "ms a step"),
        ("host_ms", "launching, ms"),
        ("device_ms", "device, ms"),
    ),
    "planning_ahead": (
        ("case", "what"),
        ("tok_s", "tokens/s"),
        ("idle_share", "device idle"),
        ("steps", "steps"),
    ),
    "ablation": (
        ("case", "what"),
        ("requests", "requests"),
        ("tok_s", "tokens/s"),
        ("ttft_ms_p50", "TTFT p50, ms"),
        ("sequences_mean", "sequences, mean"),
        ("hit_tokens", "tokens from the cache"),
    ),
    "crash_cost": (
        ("case", "what"),
        ("undisturbed_s", "undisturbed, s"),
        ("crashed_s", "killed, s"),
        ("away_s", "no executor, s"),
        ("longest_pause_s_p50", "longest pause p50, s"),
        ("output_tokens", "tokens, all there"),
    ),
}


def table(name: str, sets: dict[str, Rows]) -> str:
    """A table by its name: "ratios", "summary", "counts", "machines", an experiment, or "figure:" and an experiment.

    Behind that ":" and one of OWN_PICTURES for a picture of that set.
    """
    if name == "ratios":
        return _ratios(sets)
    if name == "summary":
        return _summary(sets)
    if name == "counts":
        return _counts(sets)
    if name == "machines":
        return _machines(sets)
    if name.startswith("figure:"):
        return _figure(*name.split(":")[1:], sets=sets)
    parts = []
    for folder, label in SETS.items():
        rows = list(sets[folder].get(name, {}).values())
        shown = [row for row in rows if row["case"] != "prediction"]
        missing = _NEVER.get((name, folder), _MISSING)
        parts.append(f"{label}:\n\n{_of_rows(shown, _COLUMNS[name])}" if shown else f"{label}: {missing}.\n")
    return "\n".join(parts)


def _figure(experiment: str, own: str | None = None, *, sets: dict[str, Rows]) -> str:
    """The picture that plots/study.py draws, and whose it is."""
    source = next((folder for folder in ((own,) if own else PICTURED) if experiment in sets[folder]), None)
    if source is None:
        return "There is no picture yet.\n"
    picture, text = _FIGURES[experiment]
    folder = f"../plots/{OWN_PICTURES[own]}" if own else "../plots"
    return f"![{text}: {SETS[source]}]({folder}/{picture}.png)\n"


def _of_rows(rows: Sequence[Row], columns: Sequence[tuple[str, str]]) -> str:
    return _markdown(
        [heading for _, heading in columns], [[_said(row.get(key)) for key, _ in columns] for row in rows]
    )


def _ratios(sets: dict[str, Rows]) -> str:
    lines = []
    for claim in CLAIMS:
        values = [claim.value(sets[folder]) for folder in SETS]
        said = [
            _MISSING if not sets[folder] else _said(value) for folder, value in zip(SETS, values, strict=True)
        ]
        lines.append([claim.name, claim.original, claim.target, claim.peer(), *said])
    return _markdown(
        ["ratio", "the original", "wanted on the H200", "vLLM 0.26.0, H200", *SETS.values()], lines
    )


def _summary(sets: dict[str, Rows]) -> str:
    """The ratios that something is wanted of, in few columns."""
    lines = []
    for claim in (claim for claim in CLAIMS if claim.target):
        values = [_said(claim.value(sets[folder])) if sets[folder] else _MISSING for folder in SETS]
        lines.append([claim.name, claim.target, *values])
    return _markdown(["ratio", "wanted on the H200", *SETS.values()], lines)


def _counts(sets: dict[str, Rows]) -> str:
    lines = []
    for label, original, key in COUNTS:
        values = []
        for folder in SETS:
            rows = sets[folder].get("static_vs_continuous", {})
            pair = [rows.get(f"W6: {policy}", {}).get(key) for policy in ("static", "continuous")]
            values.append(" / ".join(map(_said, pair)) if rows else _MISSING)
        lines.append([label, original, *values])
    return _markdown(["W6: static / continuous", "the original", *SETS.values()], lines)


def _machines(sets: dict[str, Rows]) -> str:
    lines = []
    for folder, label in SETS.items():
        environment = next(iter(sets[folder].get("environment", {}).values()), None)
        if environment is None:
            lines.append([label, *([_MISSING] * 4)])
            continue
        hardware = environment["gpu"] or f"{environment['num_cpus']} cores of {environment['cpu']}"
        versions = (
            f"Python {environment['python']}, torch {environment['torch']}, grpcio {environment['grpcio']}"
        )
        rows = [
            row for name, cases in sets[folder].items() if name != "environment" for row in cases.values()
        ]
        commits, dates = (", ".join(sorted({str(row[key]) for row in rows})) for key in ("commit", "date"))
        lines.append([label, hardware, versions, commits, dates])
    return _markdown(["column", "hardware", "versions", "commit", "date"], lines)


def _markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [headings, ["---"] * len(headings), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _said(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def filled(page: str, sets: dict[str, Rows]) -> str:
    """The page with all of its tables as the sets have them."""
    return _TABLE.sub(lambda match: match[1] + table(match[2], sets) + match[3], page)


def main() -> int:
    """Runs the command line; with --check 1 where a page is not up to date."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--data", type=Path, metavar="DIR", help="print the ratios of this folder")
    arguments = parser.parse_args()
    if arguments.data is not None:
        rows = read_set(arguments.data)
        for claim in CLAIMS:
            print(f"{_said(claim.value(rows)) or '-':>8}  {claim.name}")
        return 0
    sets = {folder: read_set(DATA / folder) for folder in SETS}
    stale = []
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = filled(before, sets)
        if after != before:
            stale.append(page.name)
            if not arguments.check:
                page.write_text(after, encoding="utf-8")
    print(f"{'not up to date' if arguments.check else 'written'}: {', '.join(stale) or 'none'}")
    return 1 if arguments.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
