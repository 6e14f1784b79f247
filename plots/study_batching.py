"""Pictures of what the scheduler decides: batching, allocation, the ablation, planning ahead."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from style import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    QUIET,
    SKY,
    VERMILLION,
    Report,
    bars,
    dress,
    figure,
    rate_axis,
)

_POLICY_COLORS = {
    "transformers, no KV cache": QUIET,
    "transformers": QUIET,
    "naive, no KV cache": ORANGE,
    "naive": ORANGE,
    "static": VERMILLION,
    "continuous": BLUE,
}

_WHOLE = "+ planning ahead"  # the last step of the ladder: everything is on


def throughput_comparison(report: Report) -> Figure:
    """Tokens a second of each policy, equal requests on the left, W6 on the right."""
    result = figure(report, "From one request at a time to continuous batching", 10)
    axes = result.subplots(1, 2, width_ratios=(3, 2))
    rows = {row["case"]: row for row in report["rows"]}
    for one, (prefix, title) in zip(
        axes,
        (("equal: ", "equal requests, all at once"), ("W6: ", "W6: very different lengths")),
        strict=True,
    ):
        found = [(name, rows[prefix + name]) for name in _POLICY_COLORS if prefix + name in rows]
        values = [row["tok_s"] for _, row in found]
        bars(
            one,
            [_with_padding(name, row) for name, row in found],
            values,
            [_POLICY_COLORS[name] for name, _ in found],
        )
        rate_axis(one, values)
        dress(one, title, "x")
    return result


def _with_padding(name: str, row: Report) -> str:
    padded = row.get("padded_tokens")
    return f"{name}\n{padded:,} padded tokens" if padded else name


def paged_vs_contiguous(report: Report) -> Figure:
    """Sequences that the same KV memory holds, and what share of what they hold is used."""
    result = figure(report, "The same KV memory, allocated in blocks or in one piece", 9, 3.2)
    left, right = result.subplots(1, 2)
    rows = {row["case"]: row for row in report["rows"]}
    names = [name for name in ("contiguous", "paged") if name in rows]
    bars(left, names, [rows[name]["sequences_peak"] for name in names], [VERMILLION, BLUE])
    left.set_xlabel("sequences at once, at most")
    used = [100 * (1 - rows[name]["unused_share"]) for name in names]
    right.barh(range(len(names)), used, 0.65, color=GREEN, label="hold keys and values")
    right.barh(
        range(len(names)),
        [100 - share for share in used],
        0.65,
        left=used,
        color=QUIET,
        hatch="//",
        label="unused",
    )
    right.set_yticks(range(len(names)), names)
    right.set_ylim(len(names) - 0.4, -0.6)
    right.set_xlabel("share of held slots, %")
    right.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)
    for axes in (left, right):
        dress(axes, grid="x")
    left.margins(x=0.15)
    return result


def ablation(report: Report) -> Figure:
    """The ladder on the left; what is left without each switch on the right."""
    result = figure(report, "Every optimisation on its own", 11, 5)
    left, right = result.subplots(1, 2)
    rows = {row["case"]: row for row in report["rows"]}
    ladder = [name for name in rows if not name.startswith("without ")]
    values = [rows[name]["tok_s"] for name in ladder]
    bars(left, ladder, values, BLUE)
    rate_axis(left, values)
    dress(left, "switched on one after the other", "x")
    whole = rows[_WHOLE]["tok_s"] if _WHOLE in rows else float("nan")
    others = sorted(
        (name for name in rows if name.startswith("without ")), key=lambda name: rows[name]["tok_s"]
    )
    shares = [100 * rows[name]["tok_s"] / whole for name in others]
    bars(right, others, shares, VERMILLION, "{:.0f}%")
    right.axvline(100, color=QUIET, linestyle="--")
    right.margins(x=0.15)
    right.set_xlabel("of the whole's tokens a second, %")
    dress(right, "taken away alone from the whole", "x")
    return result


def planning_ahead(report: Report) -> Figure:
    """Tokens a second at depth 1 and 2 for each number of streams, and the device's wait for work."""
    result = figure(report, "Plans that go out before the results of those before them", 10, 4)
    streams = sorted({row["streams"] for row in report["rows"]})
    for axes, number in zip(result.subplots(1, len(streams), squeeze=False)[0], streams, strict=True):
        rows = [row for row in report["rows"] if row["streams"] == number]
        _depths(axes, rows, f"{number} stream{'s' if number > 1 else ''}")
    return result


def _depths(axes: Axes, rows: list[Report], title: str) -> None:
    rows = sorted(rows, key=lambda row: (row["steps_a_plan"] != "one step a plan", row["depth"]))
    names = [f"depth {row['depth']}\n{row['steps_a_plan'].replace(' a plan', '')}\na plan" for row in rows]
    colors = [{1: SKY, 2: BLUE}.get(row["depth"], PURPLE) for row in rows]
    places = range(len(rows))
    axes.bar(places, [row["tok_s"] for row in rows], 0.65, color=colors)
    for place, row in zip(places, rows, strict=True):
        text = f"{row['tok_s']:,.0f} tok/s\nidle {100 * row['idle_share']:.0f}%"
        axes.annotate(text, (place, row["tok_s"]), ha="center", va="bottom", fontsize=8)
    axes.set_xticks(places, names, fontsize=8)
    axes.margins(y=0.25)
    axes.set_ylabel("output tokens a second")
    dress(axes, title)
