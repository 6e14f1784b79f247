"""Whether this tree decodes as fast as another one: W3 by each in turn, in one session on one machine.

    git worktree add ../before b62904f             # the last tree without tensor parallelism
    python benchmarks/compare_trees.py ../before --model-shape 0.6b --batches 1 64

Each round runs `benchmarks/latency.py --workload W3` of both trees, which starts the services of its own tree; every
other round in the other order. A ratio is the median of this tree's milliseconds a step over the other's: 1 is no loss.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import print_json, print_table, rounded

_HERE = Path(__file__).resolve().parents[1]
_COLUMNS = ("batch", "before_ms", "after_ms", "ratio", "before_spread_ms", "after_spread_ms")

Steps = dict[int, list[float]]
"""Milliseconds a step of each round, by batch size."""


def measure(tree: Path, flags: list[str]) -> dict[int, float]:
    """Milliseconds a step by batch size; CalledProcessError where the tree's benchmark fails."""
    ours = (str(tree), str(tree / "client"), str(tree / "protos"))
    paths = os.pathsep.join((*ours, *filter(None, [os.environ.get("PYTHONPATH")])))
    command = [sys.executable, "benchmarks/latency.py", "--workload=W3", *flags]
    done = subprocess.run(
        command,
        cwd=tree,
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    return {row["batch"]: row["ms_per_step"] for row in rows}


def compare(before: Path, after: Path, num_rounds: int, flags: list[str]) -> list[dict[str, Any]]:
    """A row for each batch size."""
    trees = {"before": before, "after": after}
    steps: dict[str, Steps] = {name: {} for name in trees}
    for number in range(num_rounds):
        for name in list(trees) if number % 2 == 0 else reversed(trees):
            for batch, milliseconds in measure(trees[name], flags).items():
                steps[name].setdefault(batch, []).append(milliseconds)
                print(f"round {number} {name}: batch {batch}, {milliseconds:.4f} ms", file=sys.stderr)
    return [_row(batch, values, steps["after"][batch]) for batch, values in steps["before"].items()]


def _row(batch: int, before: list[float], after: list[float]) -> dict[str, Any]:
    return rounded(
        {
            "test": "compare_trees",
            "batch": batch,
            "rounds": len(before),
            "before_ms": median(before),
            "after_ms": median(after),
            "ratio": median(after) / median(before),
            "before_spread_ms": [min(before), max(before)],
            "after_spread_ms": [min(after), max(after)],
        }
    )


def main() -> int:
    """Runs the command line; what it does not know goes to latency.py, of both trees."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--after", type=Path, default=_HERE, help="default: this one")
    parser.add_argument("--rounds", type=int, default=5, help="of both (default %(default)s)")
    arguments, flags = parser.parse_known_args()
    rows = compare(arguments.before.resolve(), arguments.after.resolve(), arguments.rounds, flags)
    print_table(rows, _COLUMNS)
    print_json(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
