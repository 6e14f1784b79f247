"""What launching a decode step costs, by batch: CUDA graphs against eager, everything else equal.

    python experiments/cuda_graphs.py --model-shape 0.6b --device cuda --out plots/data/h200-0.6b

W3 with each, over 64 output tokens where it is eager: milliseconds a step as clients see them, and of these the
device's and the launching thread's. Both launch layer by layer; what a single row wins where all its layers are one
kernel, as those of a small model, is a case of its own. Without a GPU there are no graphs, and so no cases.
"""

import argparse
import sys
from dataclasses import replace
from functools import partial

from benchmarks import cases as kinds
from benchmarks.steps import steps_between
from benchmarks.workloads import EqualWorkload
from experiments.harness import Bench, Case, main
from experiments.sizes import Sizes
from experiments.store import Row

NAME = "cuda_graphs"
_LAYER_BY_LAYER = "--no-resident-decode"
_EAGER_TOKENS = 64
_MODES: dict[str, tuple[str, ...]] = {
    "graphs": (_LAYER_BY_LAYER,),
    "eager": (_LAYER_BY_LAYER, "--enforce-eager"),
    "resident": (),
}


def cases(sizes: Sizes, arguments: argparse.Namespace) -> list[Case]:
    """Every batch with graphs, then eager, then a row of resident layers, if there are any; none on a CPU."""
    if arguments.device != "cuda":
        return []
    longest = sizes.decode.num_prompt_tokens + sizes.decode.num_output_tokens
    return [
        Case(
            f"{mode}, batch {batch}",
            {"workload": repr(_workload(mode, sizes)), "batch": batch, "reps": sizes.reps},
            partial(_measure, sizes=sizes, batch=batch, mode=mode),
            (f"--max-model-len={longest}", f"--max-num-seqs={max(sizes.batches)}", *flags),
            ("--no-enable-prefix-caching",),
        )
        for mode, flags in _MODES.items()
        for batch in (sizes.batches if mode != "resident" else (1,) * sizes.resident)
    ]


def _workload(mode: str, sizes: Sizes) -> EqualWorkload:
    """Eager steps take about as long each, whatever the context: fewer of them tell as much."""
    num_tokens = sizes.decode.num_output_tokens
    return replace(
        sizes.decode, num_output_tokens=min(num_tokens, _EAGER_TOKENS) if mode == "eager" else num_tokens
    )


def _measure(bench: Bench, sizes: Sizes, batch: int, mode: str) -> Row:
    before = bench.server.load()
    row = kinds.decode(bench.clients, _workload(mode, sizes), batch, sizes.reps)
    steps = steps_between(before, bench.server.load())
    return {
        "mode": mode,
        "batch": batch,
        "ms_per_step": row["ms_per_step"],
        "tok_s": row["tok_s"],
        "device_ms": round(steps.device_ms, 4),
        "host_ms": round(steps.host_ms, 4),
        "idle_share": round(steps.idle_share, 4),
        "spread_s": row["spread_s"],
    }


if __name__ == "__main__":
    sys.exit(main(__doc__, NAME, cases))
