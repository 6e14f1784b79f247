"""Draws every picture of the study from the JSON that experiments/study.py wrote. Needs the extra `plots`.

    python plots/study.py                                            # what is committed
    python plots/study.py --data .run/study --out .run/study         # your own

Of the folders in plots/data the first that is there of h200-0.6b and cpu-demo gives the pictures beside this file;
those of each other one lie beside its JSON. An experiment that has no rows has no picture.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure
from study_batching import ablation, paged_vs_contiguous, planning_ahead, throughput_comparison
from study_device import crash_cost, cuda_graphs, prefix_cache_latency, roofline
from style import Report
from tp_scaling import tp_scaling

HERE = Path(__file__).resolve().parent
SETS = HERE / "data"
_FIRST = ("h200-0.6b", "cpu-demo")
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


def draw(data: Path, out: Path) -> list[str]:
    """Draws what the folder has; the names of the pictures."""
    drawn = []
    for experiment, (name, picture) in _PICTURES.items():
        path = data / f"{experiment}.json"
        report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": []}
        if report["rows"]:
            out.mkdir(parents=True, exist_ok=True)
            picture(report).savefig(out / f"{name}.png", dpi=150)
            drawn.append(name)
    return drawn


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a folder of JSON (default: all that are committed)")
    parser.add_argument("--out", type=Path, help="where the pictures go; with --data")
    arguments = parser.parse_args()
    if (arguments.data is None) != (arguments.out is None):
        parser.error("--data and --out go together")
    if arguments.data is not None:
        wanted = [(arguments.data, arguments.out)]
    else:
        first = next(name for name in _FIRST if (SETS / name).is_dir())
        wanted = [(folder, HERE if folder.name == first else folder) for folder in sorted(SETS.iterdir())]
    for data, out in wanted:
        print(f"{data.name}: {', '.join(draw(data, out))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
