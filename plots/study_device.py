"""Pictures of what the device does: the roofline, CUDA graphs, cached prefixes, a crash."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from style import BLUE, GREEN, INK, ORANGE, PURPLE, QUIET, SKY, VERMILLION, Report, dress, figure, plain_ticks

_CONTEXT_STYLES = ((BLUE, "o"), (VERMILLION, "s"), (GREEN, "^"), (PURPLE, "D"))

_MODES = {
    "eager": (VERMILLION, "s", "eager"),
    "graphs": (BLUE, "o", "graphs"),
    "resident": (GREEN, "D", "graphs, one row's layers in one kernel"),
}


def roofline(report: Report) -> Figure:
    """Achieved operations a second over operations a byte, below the measured ceilings."""
    result = figure(report, "What a step does with each byte that it moves", 9, 5.2)
    axes = result.subplots()
    rows = report["rows"]
    points = [row for row in rows if row.get("phase") != "ceilings"]
    intensities = [row["operations_per_byte"] for row in points]
    lowest, highest = min(intensities) / 2, max(intensities) * 2
    for ceiling in (row for row in rows if row.get("phase") == "ceilings"):
        _roof(axes, ceiling, lowest, highest)
    _decode_points(axes, [row for row in points if row["phase"] == "decode"])
    prefill = sorted((row for row in points if row["phase"] == "prefill"), key=lambda row: row["context"])
    x, y = [[row[name] for row in prefill] for name in ("operations_per_byte", "gflops")]
    axes.plot(x, y, ":", marker="P", color=ORANGE, markersize=8, label="prefill of one prompt, by its tokens")
    for row in prefill:
        _label(axes, row, f"{row['context']:,}", (0, -14))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(lowest, highest)
    plain_ticks(axes, "x")
    plain_ticks(axes, "y")
    axes.set_xlabel("arithmetic intensity: operations a byte that has to be moved (log scale)")
    axes.set_ylabel("achieved, GFLOP/s (log scale)")
    axes.legend(frameon=False, loc="lower right")
    dress(axes, grid="both")
    return result


def _roof(axes: Axes, ceiling: Report, lowest: float, highest: float) -> None:
    ridge = ceiling["gflops"] / ceiling["gb_s"]
    x = [min(lowest, ridge), ridge, max(highest, ridge)]
    label = f"measured ceilings: {ceiling['gb_s']:,.0f} GB/s, {ceiling['gflops']:,.0f} GFLOP/s"
    axes.plot(
        x, [min(intensity * ceiling["gb_s"], ceiling["gflops"]) for intensity in x], color=INK, label=label
    )


def _decode_points(axes: Axes, rows: list[Report]) -> None:
    contexts = sorted({row["parameters"]["context"] for row in rows})
    for context, (color, marker) in zip(contexts, _CONTEXT_STYLES, strict=False):
        line = sorted(
            (row for row in rows if row["parameters"]["context"] == context), key=lambda row: row["batch"]
        )
        x, y = [[row[name] for row in line] for name in ("operations_per_byte", "gflops")]
        axes.plot(x, y, "-", marker=marker, color=color, label=f"decode, prompts of {context:,}, by batch")
        for row in line:
            _label(axes, row, str(row["batch"]), (0, 7))


def _label(axes: Axes, row: Report, text: str, offset: tuple[int, int]) -> None:
    place = (row["operations_per_byte"], row["gflops"])
    axes.annotate(text, place, xytext=offset, textcoords="offset points", ha="center", fontsize=8)


def cuda_graphs(report: Report) -> Figure:
    """Milliseconds a step by batch, one replay against a launch a kernel."""
    result = figure(report, "A decode step: one graph, or every kernel launched")
    axes = result.subplots()
    for mode, (color, marker, label) in _MODES.items():
        rows = sorted((row for row in report["rows"] if row["mode"] == mode), key=lambda row: row["batch"])
        batches = [row["batch"] for row in rows]
        steps, launches = [[row[name] for row in rows] for name in ("ms_per_step", "host_ms")]
        if rows:
            axes.plot(batches, steps, "-", marker=marker, color=color, label=label)
        if len(rows) > 1:
            label = f"{label}: launching alone"
            axes.plot(batches, launches, ":", marker=marker, color=color, markersize=4, label=label)
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    plain_ticks(axes, "x")
    axes.set_xlabel("batch")
    axes.set_ylabel("ms a decode step")
    axes.legend(frameon=False)
    dress(axes)
    return result


def prefix_cache_latency(report: Report) -> Figure:
    """Latency to the first token of a new prefix, and of one that another request has computed."""
    result = figure(report, "A prompt whose prefix another request has computed")
    axes = result.subplots()
    styles = ((True, "cold_ms", VERMILLION, "s", "cold"), (True, "warm_ms", BLUE, "o", "warm"))
    styles += ((False, "warm_ms", QUIET, "^", "asked again with caching off"),)
    for caching, name, color, marker, label in styles:
        rows = sorted(
            (row for row in report["rows"] if row["caching"] == caching), key=lambda row: row["prefix"]
        )
        lengths = [row["prefix"] for row in rows]
        axes.plot(lengths, [row[name] for row in rows], "-", marker=marker, color=color, label=label)
        if label == "warm":
            for row in rows:
                text = f"{row['cold_over_warm']:.1f} times\nas fast"
                place = (row["prefix"], row["warm_ms"])
                axes.annotate(
                    text, place, xytext=(0, -28), textcoords="offset points", ha="center", fontsize=8
                )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.margins(y=0.25)
    plain_ticks(axes, "x")
    plain_ticks(axes, "y")
    axes.set_xlabel("tokens of the shared prefix (16 more are the request's own)")
    axes.set_ylabel("ms to the first token (log scale)")
    axes.legend(frameon=False)
    dress(axes)
    return result


def crash_cost(report: Report) -> Figure:
    """What the same requests took, undisturbed and with the executor killed half way."""
    result = figure(report, "An executor killed half way: every stream still gets all of its tokens", 9, 3.4)
    axes = result.subplots()
    rows = sorted(report["rows"], key=lambda row: row["streams"])
    left = [0.0] * len(rows)
    for name, color, label in (
        ("undisturbed_s", BLUE, "undisturbed"),
        ("away_s", VERMILLION, "no executor: its restart"),
        ("added_beside_away_s", SKY, "the rest: computed again"),
    ):
        values = [max(0.0, row[name]) for row in rows]
        axes.barh(range(len(rows)), values, 0.6, left=left, color=color, label=label)
        left = [before + value for before, value in zip(left, values, strict=True)]
    for place, row in enumerate(rows):
        axes.annotate(f" +{row['added_s']:.1f} s", (left[place], place), va="center", fontsize=9)
    axes.set_yticks(
        range(len(rows)), [f"{row['streams']} stream{'s' if row['streams'] > 1 else ''}" for row in rows]
    )
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.margins(x=0.1)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)
    dress(axes, grid="x")
    return result
