"""The whole study: every experiment on one model and device, resumable, in pieces as long as one likes.

    python experiments/study.py --model-shape 0.6b --device cuda --out plots/data/h200-0.6b --minutes 8

The same command again goes on where it was; 3 is its exit status while something is left. `make study` is that of
the demo model on a CPU. docs/study.md tells the story; plots/study.py draws the pictures and study_report.py fills
in the tables.
"""

import sys

from experiments import (
    ablation,
    crash_cost,
    cuda_graphs,
    paged_vs_contiguous,
    planning_ahead,
    prefix_cache_eval,
    roofline,
    static_vs_continuous,
    tp_scaling,
)
from experiments.harness import Experiment, checked_run, parser

EXPERIMENTS: dict[str, Experiment] = {
    module.NAME: module.cases
    for module in (
        roofline,
        static_vs_continuous,
        paged_vs_contiguous,
        prefix_cache_eval,
        tp_scaling,
        cuda_graphs,
        planning_ahead,
        ablation,
        crash_cost,
    )
}
"""In the order of the story."""


def main() -> int:
    """Runs the command line."""
    command = parser(__doc__)
    text = f"experiments to run, in the order of the story: {', '.join(EXPERIMENTS)} (default: all)"
    command.add_argument(
        "--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), metavar="NAME", help=text
    )
    tp_scaling.add_arguments(command)
    arguments = command.parse_args()
    return checked_run({name: EXPERIMENTS[name] for name in arguments.only}, arguments)


if __name__ == "__main__":
    sys.exit(main())
