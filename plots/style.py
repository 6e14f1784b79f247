"""How the pictures look: opaque white, so that it reads the same on a light and a dark page."""

from collections.abc import Sequence
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart in every common colour blindness.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)
INK, GRID, QUIET = "#222222", "#DDDDDD", "#999999"

_LINEAR_RANGE = 10

Report = dict[str, Any]
"""What an experiment wrote: rows, model, environment."""


def blank(width: float, height: float) -> Figure:
    """An empty picture, in inches."""
    mpl.rcParams.update({"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK})
    mpl.rcParams.update({"xtick.color": INK, "ytick.color": INK})
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def figure(report: Report, title: str, width: float = 9.0, height: float = 4.4) -> Figure:
    """An empty picture with its title, and below it what was measured on what."""
    result = blank(width, height)
    result.suptitle(title, x=0.02, ha="left", fontsize=12, fontweight="bold")
    result.supxlabel(measured_on(report), x=0.02, ha="left", fontsize=8)
    return result


def measured_on(report: Report) -> str:
    """Model, hardware, versions, commits and dates, in one line."""
    environment, rows = report["environment"], report["rows"]
    hardware = environment["gpu"] or f"{environment['num_cpus']} cores of {environment['cpu']}"
    commits, dates = (sorted({row[name] for row in rows}) for name in ("commit", "date"))
    model = {"demo": "demo model"}.get(report["model"], f"Qwen3-{report['model'].upper()} shape")
    parts = (
        model,
        hardware,
        f"torch {environment['torch']}",
        f"commit {', '.join(commits)}",
        ", ".join(dates),
    )
    return "  |  ".join(parts)


def dress(axes: Axes, title: str = "", grid: Literal["both", "x", "y"] = "y") -> None:
    """Grid behind, no box, the title at the left."""
    axes.grid(axis=grid, color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=10, color=INK)


def bars(
    axes: Axes,
    names: Sequence[str],
    values: Sequence[float],
    color: str | Sequence[str],
    label: str = "{:,.0f}",
) -> None:
    """Horizontal bars from the top, each with its value at its end."""
    places = range(len(names))
    axes.barh(places, values, 0.65, color=color)
    for place, value in zip(places, values, strict=True):
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # where a line crosses it
        place_of = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(label.format(value), (value, place), fontsize=9, bbox=behind, **place_of)
    axes.set_yticks(places, names)
    axes.set_ylim(len(names) - 0.4, -0.6)


def plain_ticks(axes: Axes, which: str) -> None:
    """Numbers as they are said, on a logarithmic axis too."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    axis.set_minor_formatter(lambda value, _: "")


def rate_axis(axes: Axes, values: Sequence[float]) -> None:
    """Tokens a second along x: from zero, or logarithmic where the values differ by much."""
    if max(values) < _LINEAR_RANGE * min(values):
        axes.set_xlim(0, 1.2 * max(values))
        axes.set_xlabel("output tokens a second")
        return
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 2, max(values) * 4)
    plain_ticks(axes, "x")
    axes.set_xlabel("output tokens a second (log scale)")
