"""Naive, static and continuous batching on the same requests, and transformers one request at a time.

    python experiments/static_vs_continuous.py --model-shape 0.6b --device cuda --out plots/data/h200-0.6b

Equal requests, all at once, with a row for each: what a batch buys. W6, whose outputs differ much in length, with
few rows: what a static batch wastes. Naive is one request after the other, with and without a KV cache, and answers
the first few of the same requests: its rate does not depend on how many there are. Prefix caching is off.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from benchmarks.workloads import Prompt, equal_prompts, lognormal_prompts
from experiments.harness import Bench, Case, main
from experiments.naive_transformers import in_a_process
from experiments.serving import answered
from experiments.sizes import Sizes
from experiments.store import Row

NAME = "static_vs_continuous"
_UNCACHED = "naive, no KV cache"
POLICIES = {
    _UNCACHED: ("--batching=naive", "--no-kv-cache"),
    "naive": ("--batching=naive",),
    "static": ("--batching=static",),
    "continuous": ("--batching=continuous",),
}
_TRANSFORMERS = {"transformers, no KV cache": False, "transformers": True}


def cases(sizes: Sizes, arguments: argparse.Namespace) -> list[Case]:
    """Both workloads under every policy; transformers on the equal requests."""
    equal = {run: equal_prompts(sizes.equal, sizes.streams, run) for run in (0, 1)}
    skewed = {run: lognormal_prompts(sizes.skewed, run) for run in (0, 1)}
    found = [
        Case(
            f"equal: {name}",
            {"workload": repr(sizes.equal), "requests": sizes.num_uncached},
            partial(_transformers, prompts=equal[0][: sizes.num_uncached], use_cache=use_cache),
            wants_services=False,
        )
        for name, use_cache in _TRANSFORMERS.items()
    ]
    longest = sizes.equal.num_prompt_tokens + sizes.equal.num_output_tokens
    found += _under_policies("equal", equal, sizes.streams, longest, sizes, POLICIES)
    longest = sizes.skewed.num_prompt_tokens + sizes.skewed.longest
    with_cache = {name: flags for name, flags in POLICIES.items() if name != _UNCACHED}
    return found + _under_policies("W6", skewed, sizes.rows, longest, sizes, with_cache)


def _under_policies(
    workload: str,
    prompts: dict[int, list[Prompt]],
    num_rows: int,
    max_model_len: int,
    sizes: Sizes,
    policies: dict[str, tuple[str, ...]],
) -> list[Case]:
    shape = repr(sizes.equal if workload == "equal" else sizes.skewed)
    found = []
    for name, flags in policies.items():
        most = {_UNCACHED: sizes.num_uncached, "naive": sizes.num_naive}.get(name, len(prompts[0]))
        measure = partial(_policy, prompts=prompts[0][:most], warm_up=prompts[1][: min(most, num_rows)])
        found.append(
            Case(
                f"{workload}: {name}",
                {"workload": shape, "requests": most},
                measure,
                (f"--max-num-seqs={num_rows}", f"--max-model-len={max_model_len}"),
                ("--no-enable-prefix-caching", *flags),
            )
        )
    return found


def _policy(bench: Bench, prompts: Sequence[Prompt], warm_up: Sequence[Prompt]) -> Row:
    return answered(bench, prompts, warm_up)


def _transformers(arguments: argparse.Namespace, prompts: Sequence[Prompt], use_cache: bool) -> Row:
    return in_a_process(arguments, prompts, use_cache=use_cache)


if __name__ == "__main__":
    sys.exit(main(__doc__, NAME, cases))
