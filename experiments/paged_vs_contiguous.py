"""How many sequences the same KV memory holds, paged and contiguous, and how much of what is held is waste.

    python experiments/paged_vs_contiguous.py --model-shape 0.6b --device cuda --out plots/data/h200-0.6b

Contiguous allocation reserves `max_model_len` slots for each sequence. W6's requests come all at once to a pool that
holds `pool_sequences` of those; rows are not what limits. Unused slots are those of held blocks with nothing in
them.
"""

import argparse
import sys
from functools import partial

from benchmarks.workloads import lognormal_prompts
from experiments.ablation import pool_flags
from experiments.harness import Bench, Case, main
from experiments.serving import answered
from experiments.sizes import Sizes
from experiments.store import Row

NAME = "paged_vs_contiguous"


def cases(sizes: Sizes, arguments: argparse.Namespace) -> list[Case]:
    """One a kind of allocation, prefix caching off in both."""
    return [
        Case(
            allocation,
            {
                "workload": repr(sizes.skewed),
                "sequences": sizes.pool_sequences,
                "runs": sizes.runs,
            },
            partial(_measure, sizes=sizes),
            pool_flags(sizes, sizes.streams),
            ("--no-enable-prefix-caching", f"--kv-allocation={allocation}"),
        )
        for allocation in ("contiguous", "paged")
    ]


def _measure(bench: Bench, sizes: Sizes) -> Row:
    return answered(bench, lambda run: lognormal_prompts(sizes.skewed, run), sizes.runs, sizes.pool_sequences)


if __name__ == "__main__":
    sys.exit(main(__doc__, NAME, cases))
