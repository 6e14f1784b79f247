"""TTFT against request rate, simulated for the shipped trace with and without prefix caching.

    python plots/simulated_ttft_by_rate.py

simulates, writes simulated_ttft_by_rate.json beside this file and draws the .png from it. Needs the extra `plots`. The
figures are the simulator's, for the profile that the picture names: they tell what the scheduler does, not how fast a
GPU is, and come out the same on every machine.
"""

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from style import BLUE, VERMILLION, blank, dress

from scheduler_svc.simulate.config import SimulateConfig
from scheduler_svc.simulate.profile import read_profile
from scheduler_svc.simulate.public_traces import read_trace
from scheduler_svc.simulate.report import figures
from scheduler_svc.simulate.run import simulate

HERE = Path(__file__).resolve().parent
EXPERIMENTS = HERE.parent / "experiments"
DATA = HERE / "simulated_ttft_by_rate.json"
TRACE, PROFILE = EXPERIMENTS / "traces" / "example.jsonl", EXPERIMENTS / "profiles" / "illustrative.json"
RATES = (2, 4, 8, 12, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36)
STYLES = {True: (BLUE, "o", "with prefix caching"), False: (VERMILLION, "s", "without prefix caching")}


def measure() -> dict[str, Any]:
    """Simulates every rate with and without prefix caching."""
    trace, profile = read_trace(TRACE), read_profile(PROFILE)
    points = []
    for enable_prefix_caching in STYLES:
        for rate in RATES:
            config = SimulateConfig(PROFILE, TRACE, rate=rate, enable_prefix_caching=enable_prefix_caching)
            report = figures(simulate(config, trace, profile))
            names = ("ttft_ms", "requests_per_second", "num_preemptions", "prefix_hit_rate")
            point = {"rate": rate, "enable_prefix_caching": enable_prefix_caching}
            points.append(point | {name: report[name] for name in names})
            print(f"rate {rate:>3}, caching {enable_prefix_caching!s:<5}: {report['ttft_ms']}", flush=True)
    names = {"trace": TRACE.name, "profile": PROFILE.name, "num_requests": len(trace.requests)}
    return names | {"source": profile.source, "version": version("nanoserve"), "points": points}


def draw(data: dict[str, Any]) -> Figure:
    """The picture: opaque, so that it reads the same on a light and a dark page."""
    figure = blank(8, 4.8)
    axes = figure.subplots()
    for enable_prefix_caching, (color, marker, label) in STYLES.items():
        points = [p for p in data["points"] if p["enable_prefix_caching"] == enable_prefix_caching]
        rates = [point["rate"] for point in points]
        for name, line in (("p99", "--"), ("p50", "-")):
            values = [point["ttft_ms"][name] for point in points]
            axes.plot(rates, values, line, color=color, marker=marker, markersize=4, label=f"{name} {label}")
    _dress(axes, data)
    return figure


def _dress(axes: Axes, data: dict[str, Any]) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlim(0, max(RATES) + 1)
    axes.set_xlabel("requests per second")
    axes.set_ylabel("time to first token, ms (log scale)")
    axes.legend(frameon=False, loc="upper left")
    what = f"Simulated, not measured: {data['num_requests']:,} requests of {data['trace']}"
    dress(axes, f"{what}, step costs of {data['profile']}")


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draw-only", action="store_true", help="draw from the JSON that is there")
    if not parser.parse_args().draw_only:
        DATA.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    draw(json.loads(DATA.read_text(encoding="utf-8"))).savefig(DATA.with_suffix(".png"), dpi=150)
    print(f"wrote {DATA.name} and {DATA.with_suffix('.png').name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
