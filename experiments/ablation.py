"""Every switch of the service: taken away alone from the whole, and put on one after the other from nothing.

    python experiments/ablation.py --model-shape 0.6b --device cuda --out plots/data/h200-0.6b

Requests as W6 whose prompts begin with one of a few shared prefixes, all at once, on a pool of KV blocks that does
not hold them all: so each switch has something to act on. CUDA graphs, and resident layers, which serve one row of a
small model alone, are there on a GPU. Graphs come first, since where each kernel is launched from Python all else is
lost in that; and the reference backend, which is there to be read and compared with, is no switch here.
"""

import argparse
import sys
from functools import partial

from benchmarks.workloads import lognormal_prompts
from experiments.harness import Bench, Case, main
from experiments.serving import answered
from experiments.sizes import Sizes
from experiments.store import Row

NAME = "ablation"
BLOCK_SIZE = 16

# What switches each idea off: (the executor's flag, the scheduler's).
SWITCHES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "paged blocks": ((), ("--kv-allocation=contiguous",)),
    "chunked prefill": ((), ("--no-enable-chunked-prefill",)),
    "prefix caching": ((), ("--no-enable-prefix-caching",)),
    "CUDA graphs": (("--enforce-eager",), ()),
    "resident layers": (("--no-resident-decode",), ()),
    "several steps a plan": ((), ("--max-plan-ms=0",)),
    "planning ahead": ((), ("--pipeline-depth=1",)),
}
# Without batching and KV cache; and the batching that each of these steps brings instead of the one before it.
NAIVEST = ("--batching=naive", "--no-kv-cache")
_BATCHING = {
    "KV cache": ("--batching=naive",),
    "static batching": ("--batching=static",),
    "continuous batching": (),
}
_LADDER = (
    "CUDA graphs",
    "KV cache",
    "resident layers",
    "static batching",
    "continuous batching",
    "paged blocks",
    "chunked prefill",
    "prefix caching",
    "several steps a plan",
    "planning ahead",
)


def cases(sizes: Sizes, arguments: argparse.Namespace) -> list[Case]:
    """The ladder, whose last step is the whole, then the whole less each switch."""
    on_gpu = arguments.device == "cuda"
    lacking = {"CUDA graphs": not on_gpu, "resident layers": not (on_gpu and sizes.resident)}
    names = [name for name in SWITCHES if not lacking.get(name)]
    off, batching = list(names), NAIVEST
    steps = [("naive, no KV cache", list(off), batching)]
    for name in _LADDER:
        if name in _BATCHING:
            batching = _BATCHING[name]
        elif name in off:
            off.remove(name)
        else:
            continue
        steps.append((f"+ {name}", list(off), batching))
    steps += [(f"without {name}", [name], ()) for name in names]
    steps.append(("without continuous batching", [], ("--batching=static",)))
    return [_case(name, off, batching, sizes) for name, off, batching in steps]


def _case(name: str, off: list[str], batching: tuple[str, ...], sizes: Sizes) -> Case:
    executor_flags = tuple(flag for switch in off for flag in SWITCHES[switch][0])
    scheduler_flags = tuple(flag for switch in off for flag in SWITCHES[switch][1])
    most = sizes.ablation.num_requests
    if "--batching=naive" in batching:
        most = sizes.num_uncached if "--no-kv-cache" in batching else sizes.num_naive
    return Case(
        name,
        {"workload": repr(sizes.ablation), "requests": most, "runs": sizes.runs},
        partial(_measure, sizes=sizes, num_requests=most),
        (*pool_flags(sizes, sizes.ablation.num_requests), *executor_flags),
        (*batching, *scheduler_flags),
    )


def pool_flags(sizes: Sizes, num_rows: int) -> tuple[str, ...]:
    """Executor's flags of a KV pool of `pool_sequences` of the longest sequences, block 0 beside them."""
    num_blocks = sizes.pool_sequences * sizes.max_model_len // BLOCK_SIZE + 1
    return (
        f"--max-num-seqs={num_rows}",
        f"--max-model-len={sizes.max_model_len}",
        f"--block-size={BLOCK_SIZE}",
        f"--num-kv-blocks={num_blocks}",
    )


def _measure(bench: Bench, sizes: Sizes, num_requests: int) -> Row:
    return answered(bench, lambda run: lognormal_prompts(sizes.ablation, run)[:num_requests], sizes.runs)


if __name__ == "__main__":
    sys.exit(main(__doc__, NAME, cases))
