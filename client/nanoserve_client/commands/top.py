"""`nanoserve top`: a live view of what a server does, drawn anew in place until Ctrl-C."""

import argparse
import itertools
import sys
import time
from collections import deque
from dataclasses import dataclass, field

from nanoserve_client.commands.shared import add_server_argument, connect
from nanoserve_client.results import Load

_BARS = " ▁▂▃▄▅▆▇█"
_HISTORY = 48
_MAP_COLUMNS, _MAP_ROWS = 64, 6
_CLEAR_LINE, _HOME, _CLEAR_REST = "\x1b[K", "\x1b[H", "\x1b[J"
_CLEAR_ALL, _HIDE_CURSOR, _SHOW_CURSOR = "\x1b[2J", "\x1b[?25l", "\x1b[?25h"
_COLOURS = {
    "shared": "\x1b[38;5;197m",
    "held by one": "\x1b[38;5;208m",
    "cached": "\x1b[38;5;39m",
    "free": "\x1b[38;5;240m",
    "bold": "\x1b[1m",
}
_PLAIN = "\x1b[0m"
_CELLS = {"shared": "█", "held by one": "▓", "cached": "▒", "free": "·"}


@dataclass(slots=True)
class View:
    """Makes frames of readings that follow each other."""

    address: str
    colours: bool
    _before: tuple[float, Load] | None = None
    _rates: deque[float] = field(default_factory=lambda: deque(maxlen=_HISTORY))

    def frame(self, load: Load, now: float) -> list[str]:
        """The lines that show a reading, taken at `now` in seconds; rates are since the one before."""
        tokens = steps = 0.0
        if self._before is not None and load.num_steps >= self._before[1].num_steps:  # else it has begun anew
            seconds, before = now - self._before[0], self._before[1]
            tokens = (load.num_output_tokens - before.num_output_tokens) / seconds
            steps = (load.num_steps - before.num_steps) / seconds
            self._rates.append(tokens)
        self._before = now, load
        hits, queries = load.num_prefix_hit_tokens, load.num_prefix_query_tokens
        stats = load.step_stats
        device = f"{stats.device_ms:.2f} ms a step on the device" if stats is not None else "no step yet"
        return [
            self._colour("bold", f"nanoserve {self.address}") + f"   {_state(load)}",
            "",
            f"tokens/s {tokens:>10,.0f}   {_sparkline(self._rates)}",
            f"steps/s  {steps:>10,.0f}   {device}, {load.num_plans_in_flight} plans in flight",
            f"running  {load.num_running_requests:>10,}   waiting {load.num_waiting_requests:,}"
            f"   preemptions {load.num_preemptions:,}",
            f"prefixes {hits / max(1, queries):>10.0%}   of {queries:,.0f} prompt tokens found in the cache",
            "",
            *self._block_map(load),
        ]

    def _block_map(self, load: Load) -> list[str]:
        """All KV blocks, as many cells as they fill, by who holds them; a cell may be several."""
        total = load.num_total_blocks
        counts = {
            "shared": load.num_shared_blocks,
            "held by one": load.num_held_blocks - load.num_shared_blocks,
            "cached": load.num_cached_blocks,
            "free": load.num_free_blocks,
        }
        legend = "   ".join(
            self._colour(name, _CELLS[name]) + f" {count:,} {name}" for name, count in counts.items()
        )
        lines = [f"KV blocks {total:,}:   {legend}"]
        num_cells = min(total, _MAP_COLUMNS * _MAP_ROWS)
        cells = _shares(counts, num_cells)
        for first in range(0, num_cells, _MAP_COLUMNS):
            row = cells[first : first + _MAP_COLUMNS]
            groups = ((name, len(list(run))) for name, run in itertools.groupby(row))
            lines.append("".join(self._colour(name, _CELLS[name] * count) for name, count in groups))
        return lines

    def _colour(self, name: str, text: str) -> str:
        return f"{_COLOURS[name]}{text}{_PLAIN}" if self.colours else text


def _state(load: Load) -> str:
    if load.draining:
        return "draining"
    return f"serving, session {load.executor_epoch}" if load.executor_healthy else "waiting for its executor"


def _sparkline(values: deque[float]) -> str:
    most = max(values, default=0.0)
    return "".join(
        _BARS[round(value / most * (len(_BARS) - 1))] if most > 0 else _BARS[0] for value in values
    )


def _shares(counts: dict[str, int], num_cells: int) -> list[str]:
    """`num_cells` names, each as often as its share of the counts; what there is of anything shows in a cell."""
    total = max(1, sum(counts.values()))
    exact = {name: count * num_cells / total for name, count in counts.items()}
    cells = {name: max(1, int(share)) if counts[name] else 0 for name, share in exact.items()}
    while (missing := num_cells - sum(cells.values())) > 0:
        cells[max(cells, key=lambda name: exact[name] - cells[name])] += 1
    for _ in range(-missing):
        cells[max(cells, key=cells.__getitem__)] -= 1
    return [name for name, count in cells.items() for _ in range(count)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's flags."""
    add_server_argument(parser)
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between two readings")
    parser.add_argument("--once", action="store_true", help="print the second reading, and end")


def run(arguments: argparse.Namespace) -> int:
    """Draws until Ctrl-C, or once."""
    if not 0.1 <= arguments.interval <= 60:
        arguments.parser.error("--interval: must be in [0.1, 60]")
    is_terminal = sys.stdout.isatty()
    view = View(arguments.server, colours=is_terminal)
    with connect(arguments) as client:
        if arguments.once:
            view.frame(client.get_load(timeout=10), time.monotonic())
            time.sleep(arguments.interval)
            print("\n".join(view.frame(client.get_load(timeout=10), time.monotonic())))
            return 0
        try:
            sys.stdout.write(_HIDE_CURSOR + _CLEAR_ALL if is_terminal else "")
            while True:
                lines = view.frame(client.get_load(timeout=10), time.monotonic())
                _draw(lines, in_place=is_terminal)
                time.sleep(arguments.interval)
        finally:
            sys.stdout.write(_SHOW_CURSOR if is_terminal else "")


def _draw(lines: list[str], *, in_place: bool) -> None:
    if in_place:
        sys.stdout.write(_HOME + "".join(f"{line}{_CLEAR_LINE}\n" for line in lines) + _CLEAR_REST)
    else:
        sys.stdout.write("\n".join(lines) + "\n\n")
    sys.stdout.flush()
