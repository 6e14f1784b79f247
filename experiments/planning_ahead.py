"""Plans that go out before the results of those before them, against one plan at a time, by number of streams.

    python experiments/planning_ahead.py --model-shape 0.6b --device cuda --out plots/data/h200-0.6b

With one decode step a plan, where a turn of the two services lies between any two steps, and with as many as
`--max-plan-ms` allows, which hides most of a turn by itself. The idle share is the device's wait for work.
"""

import argparse
import sys
from functools import partial

from benchmarks.workloads import equal_prompts
from experiments.harness import Bench, Case, main
from experiments.serving import answered
from experiments.sizes import Sizes
from experiments.store import Row

NAME = "planning_ahead"
_STEPS: dict[str, tuple[str, ...]] = {"one step a plan": ("--max-plan-ms=0",), "several steps a plan": ()}


def cases(sizes: Sizes, arguments: argparse.Namespace) -> list[Case]:
    """Both depths, with one and with several steps a plan, for each number of streams."""
    longest = sizes.ahead.num_prompt_tokens + sizes.ahead.num_output_tokens
    return [
        Case(
            f"depth {depth}, {steps}, streams: {streams}",
            {
                "workload": repr(sizes.ahead),
                "depth": depth,
                "steps": steps,
                "streams": streams,
                "runs": sizes.runs,
            },
            partial(
                _measure, sizes=sizes, labels={"depth": depth, "steps_a_plan": steps, "streams": streams}
            ),
            (f"--max-model-len={longest}", f"--max-num-seqs={max(sizes.ahead_streams)}"),
            ("--no-enable-prefix-caching", f"--pipeline-depth={depth}", *flags),
        )
        for depth in (1, 2)
        for steps, flags in _STEPS.items()
        for streams in sizes.ahead_streams
    ]


def _measure(bench: Bench, sizes: Sizes, labels: Row) -> Row:
    return labels | answered(
        bench, lambda run: equal_prompts(sizes.ahead, labels["streams"], run), sizes.runs
    )


if __name__ == "__main__":
    sys.exit(main(__doc__, NAME, cases))
