"""The picture of tensor parallelism: a step's time by number of ranks, in its parts; the right half is a prediction."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from style import BLUE, QUIET, VERMILLION, Report, dress, figure

_PARTS = {"compute_ms": BLUE, "communication_ms": VERMILLION, "rest_ms": QUIET}


def tp_scaling(report: Report) -> Figure:
    """Measured on the left, predicted on the right."""
    result = figure(report, "A decode step by number of ranks")
    left, right = result.subplots(1, 2)
    measured = sorted((row for row in report["rows"] if "size" in row), key=lambda row: row["size"])
    _bars(left, measured, f"MEASURED: batch {measured[0]['batch']}\non the machine below")
    left.legend(frameon=False, loc="upper left")
    (predicted,) = (row for row in report["rows"] if row["case"] == "prediction")
    link = f"{predicted['link_gb_per_second']:g} GB/s, {predicted['link_latency_us']:g} us"
    what = f"PREDICTION, no measurement: {predicted['model']}, batch {predicted['batch']}\nlink of {link}"
    _bars(right, predicted["points"], what)
    return result


def _bars(axes: Axes, points: list[dict[str, Any]], title: str) -> None:
    names = [str(point["size"]) for point in points]
    bottom = [0.0] * len(points)
    for part, color in _PARTS.items():
        heights = [point[part] for point in points]
        axes.bar(names, heights, 0.6, bottom=bottom, color=color, label=part.removesuffix("_ms"))
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    for name, top, point in zip(names, bottom, points, strict=True):
        text = f"{point['tokens_per_second']:,.0f} tok/s"
        axes.annotate(text, (name, top), ha="center", va="bottom", fontsize=8)
    axes.set_ylim(0, 1.35 * max(bottom))
    axes.set_xlabel("ranks")
    axes.set_ylabel("decode step, ms")
    dress(axes, title)
