"""What experiments/tp_scaling.py measured and predicted: a step's time by number of ranks, in its parts.

    python plots/tp_scaling.py

draws tp_scaling.png from tp_scaling.json beside this file. Needs the extra `plots`. The right half is a prediction.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DATA = Path(__file__).resolve().parent / "tp_scaling.json"
# Okabe and Ito's colours: told apart in every common colour blindness.
PARTS = {"compute_ms": "#0072B2", "communication_ms": "#D55E00", "rest_ms": "#999999"}
INK, GRID = "#222222", "#DDDDDD"


def draw(data: dict[str, Any]) -> Figure:
    """The picture: opaque, so that it reads the same on a light and a dark page."""
    mpl.rcParams.update({"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK})
    figure = Figure(figsize=(9, 4.4), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    measured, predicted = data["measured"], data["predicted"]
    what = (
        f"Measured: {data['model']}, batch {data['batch']}, {data['device']}\n{data['date']}, machine below"
    )
    _bars(left, measured, what)
    link = f"{predicted['link_gb_per_second']:g} GB/s, {predicted['link_latency_us']:g} us"
    what = f"PREDICTION: {predicted['model']}, batch {predicted['batch']}, link of {link}\nno measurement"
    _bars(right, predicted["points"], what)
    figure.supxlabel(f"measured on {data['machine']}", x=0.02, ha="left", fontsize=9)
    left.legend(frameon=False, loc="upper left")
    return figure


def _bars(axes: Axes, points: list[dict[str, Any]], title: str) -> None:
    names = [str(point["size"]) for point in points]
    bottom = [0.0] * len(points)
    for part, color in PARTS.items():
        heights = [point[part] for point in points]
        axes.bar(names, heights, 0.6, bottom=bottom, color=color, label=part.removesuffix("_ms"))
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    for name, top, point in zip(names, bottom, points, strict=True):
        axes.annotate(
            f"{point['tokens_per_second']:,.0f} tok/s", (name, top), ha="center", va="bottom", fontsize=8
        )
    axes.set_ylim(0, 1.35 * max(bottom))
    axes.set_xlabel("ranks")
    axes.set_ylabel("decode step, ms")
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=10, color=INK)


def main() -> int:
    """Draws."""
    draw(json.loads(DATA.read_text(encoding="utf-8"))).savefig(DATA.with_suffix(".png"), dpi=150)
    print(f"wrote {DATA.with_suffix('.png').name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
