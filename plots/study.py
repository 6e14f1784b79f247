"""Draws the pictures of the study from the JSON that experiments/study.py wrote. Needs the extra `plots`.

    python plots/study.py                                            # from what is committed, beside this file
    python plots/study.py --data .run/study --out .run/study         # your own

Of what is committed each picture is of the first set of PICTURED (experiments/study_report.py) that has rows of its
experiment; without any there is no picture. The sets of OWN_PICTURES have theirs in folders.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from study_batching import ablation, paged_vs_contiguous, planning_ahead, throughput_comparison
from study_device import crash_cost, cuda_graphs, prefix_cache_latency, roofline
from style import Report
from tp_scaling import tp_scaling

from experiments.study_report import DATA, OWN_PICTURES, PICTURED

HERE = Path(__file__).resolve().parent
# Experiment -> the picture's name and who draws it.
_PICTURES: dict[str, tuple[str, Callable[[Report], Figure]]] = {
    "static_vs_continuous": ("throughput_comparison", throughput_comparison),
    "prefix_cache_eval": ("prefix_cache_latency", prefix_cache_latency),
    "tp_scaling": ("tp_scaling", tp_scaling),
    "ablation": ("ablation", ablation),
    "paged_vs_contiguous": ("paged_vs_contiguous", paged_vs_contiguous),
    "cuda_graphs": ("cuda_graphs", cuda_graphs),
    "roofline": ("roofline", roofline),
    "planning_ahead": ("planning_ahead", planning_ahead),
    "crash_cost": ("crash_cost", crash_cost),
}


def draw(sets: Sequence[Path], out: Path) -> list[str]:
    """Draws each experiment from the first of the folders that has it; the pictures' names and models."""
    drawn = []
    for experiment, (name, picture) in _PICTURES.items():
        reports = (_report(folder / f"{experiment}.json") for folder in sets)
        report = next((found for found in reports if found["rows"]), None)
        if report is not None:
            out.mkdir(parents=True, exist_ok=True)
            picture(report).savefig(out / f"{name}.png", dpi=150)
            drawn.append(f"{name} ({report['model']})")
    return drawn


def _report(path: Path) -> Report:
    report: Report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": []}
    return report


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a folder of JSON (default: the committed ones)")
    parser.add_argument("--out", type=Path, help="where the pictures go; with --data")
    arguments = parser.parse_args()
    if (arguments.data is None) != (arguments.out is None):
        parser.error("--data and --out go together")
    if arguments.data is not None:
        drawn = draw([arguments.data], arguments.out)
    else:
        drawn = draw([DATA / name for name in PICTURED], HERE)
        for name, folder in OWN_PICTURES.items():
            drawn += draw([DATA / name], HERE / folder)
    if not drawn:
        parser.error(f"--data: {arguments.data or DATA} has no rows of any experiment")
    print("\n".join(drawn))
    return 0


if __name__ == "__main__":
    sys.exit(main())
