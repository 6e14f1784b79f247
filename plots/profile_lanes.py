"""A few steps of a profile, lane by lane.

    nanoserve profile --address ADDR --steps 50 --output trace.json
    python plots/profile_lanes.py --trace trace.json --label "hardware, model, load, date"

takes some steps from the middle of the trace, writes what it draws to profile_lanes.json beside this file and the
picture to profile_lanes.png; without --trace it draws from the JSON that is there. Needs the extra `plots`.
"""

import argparse
import gzip
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from style import BLUE, GREEN, ORANGE, PURPLE, QUIET, SKY, VERMILLION, blank, dress

DATA = Path(__file__).resolve().parent / "profile_lanes.json"
# Rows from the top: lane, which events lie there (by kind, or by torch's category), how they are called.
ROWS: tuple[tuple[str, frozenset[str], str], ...] = (
    ("scheduler", frozenset({"schedule"}), "scheduler: schedule"),
    ("scheduler", frozenset({"send"}), "send"),
    ("scheduler", frozenset({"update"}), "update"),
    ("scheduler", frozenset({"publish"}), "publish"),
    ("boundary", frozenset({"plan"}), "boundary: plan on its way"),
    ("boundary", frozenset({"result"}), "result on its way"),
    ("executor host", frozenset({"decode"}), "executor host: decode"),
    ("executor host", frozenset({"launch"}), "launch"),
    ("executor host", frozenset({"encode"}), "encode"),
    ("device", frozenset({"step"}), "device: step"),
    ("device", frozenset({"kernel", "gpu_memcpy", "gpu_memset", "cpu_op"}), "kernels or operators"),
)
COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION)
# What takes less than this share of the width is drawn as wide as it, to be seen at all.
LEAST_WIDTH = 0.0015
# Device events of less than this share of the width are left out of the JSON: they would not be seen.
LEAST_SHARE = 0.0005


def read_steps(path: Path, num_steps: int) -> list[dict[str, Any]]:
    """What each row shows of some steps in the middle of a trace; times in ms from the first one's schedule."""
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else path.open(encoding="utf-8")
    with opened as file:
        events = json.load(file)["traceEvents"]
    lanes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    events = [event for event in events if event["ph"] == "X"]
    ids = sorted({e["args"]["step_id"] for e in events if e["args"].get("kind") == "launch"})
    first = max(0, (len(ids) - num_steps) // 2)
    wanted = set(ids[first : first + num_steps])
    spans = [e for e in events if e["args"].get("step_id") in wanted and "kind" in e["args"]]
    begin = min(event["ts"] for event in spans)
    end = max(event["ts"] + event["dur"] for event in spans)
    bars = []
    for event in events:
        kind = event["args"].get("kind", event["cat"])
        row = _row(lanes[event["pid"]], kind)
        shown = begin <= event["ts"] and event["ts"] + event["dur"] <= end
        if row is None or not shown or (row == len(ROWS) - 1 and event["dur"] < LEAST_SHARE * (end - begin)):
            continue
        step_id = event["args"].get("step_id")
        bars.append(
            {
                "row": row,
                "begin_ms": round((event["ts"] - begin) / 1e3, 4),
                "ms": round(event["dur"] / 1e3, 4),
                "step_id": step_id if step_id in wanted else None,
            }
        )
    return bars


def _row(lane: str, kind: str) -> int | None:
    rows = (index for index, (name, kinds, _) in enumerate(ROWS) if name == lane and kind in kinds)
    return next(rows, None)


def draw(data: dict[str, Any]) -> Figure:
    """The picture: opaque, so that it reads the same on a light and a dark page."""
    figure = blank(10, 5.2)
    axes = figure.subplots()
    width = max(bar["begin_ms"] + bar["ms"] for bar in data["bars"])
    _bars(axes, data["bars"], width)
    axes.set_yticks(range(len(ROWS)), [label for *_, label in ROWS])
    axes.set_ylim(len(ROWS) - 0.4, -0.6)
    axes.set_xlim(0, width)
    axes.set_xlabel("milliseconds")
    what = "Steps by nanoserve profile, a colour each; grey: neighbours, or no step known"
    dress(axes, f"{what}\n{data['label']}", "x")
    return figure


def _bars(axes: Axes, bars: Iterable[dict[str, Any]], width: float) -> None:
    for bar in bars:
        step_id = bar["step_id"]
        faint = step_id is None
        color = QUIET if faint else COLORS[step_id % len(COLORS)]
        length = max(bar["ms"], LEAST_WIDTH * width)
        axes.barh(
            bar["row"], length, left=bar["begin_ms"], height=0.7, color=color, alpha=0.5 if faint else 1.0
        )
        if "step" in ROWS[bar["row"]][1] and not faint:
            middle = bar["begin_ms"] + bar["ms"] / 2
            axes.text(middle, bar["row"], str(step_id), ha="center", va="center", color="white", fontsize=9)


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, help="what nanoserve profile wrote")
    parser.add_argument("--label", help="what was measured, on what and when; needed with --trace")
    parser.add_argument("--steps", type=int, default=5, help="how many steps to draw (default %(default)s)")
    arguments = parser.parse_args()
    if arguments.trace is not None:
        if not arguments.label:
            parser.error("--label: a picture has to say what it is of")
        data = {"label": arguments.label, "bars": read_steps(arguments.trace, arguments.steps)}
        DATA.write_text(json.dumps(data) + "\n", encoding="utf-8")
    draw(json.loads(DATA.read_text(encoding="utf-8"))).savefig(DATA.with_suffix(".png"), dpi=150)
    print(f"wrote {DATA.with_suffix('.png').name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
