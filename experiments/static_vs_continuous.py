"""Naive, static and continuous batching on the same requests, and transformers one request at a time.

    python experiments/static_vs_continuous.py --model-shape 0.6b --device cuda --out plots/data/h200-0.6b

Equal requests, all at once, with a row for each: what a batch buys. W6, whose outputs differ much in length, with
few rows: what a static batch wastes. Naive is one request after the other, with and without a KV cache, and answers
the first few of the same requests: its rate does not depend on how many there are. Prefix caching is off.
"""

import argparse
import sys
from functools import partial

from benchmarks.workloads import Prompt, equal_prompts, lognormal_prompts
from experiments.harness import Case, main
from experiments.naive_transformers import in_a_process
from experiments.serving import answered
from experiments.sizes import Sizes

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
    first = equal_prompts(sizes.equal, sizes.streams)[: sizes.num_uncached]
    found = [
        Case(
            f"equal: {name}",
            {
                "workload": repr(sizes.equal),
                "requests": sizes.num_uncached,
                "use_cache": use_cache,
                "runs": sizes.runs,
            },
            None,
            alone=partial(in_a_process, prompts=first, use_cache=use_cache, num_runs=sizes.runs),
        )
        for name, use_cache in _TRANSFORMERS.items()
    ]
    found += [_policy("equal", name, sizes) for name in POLICIES]
    return found + [_policy("W6", name, sizes) for name in POLICIES if name != _UNCACHED]


def _policy(workload: str, name: str, sizes: Sizes) -> Case:
    if workload == "equal":
        shape, num_rows, num_requests = repr(sizes.equal), sizes.streams, sizes.streams
        longest = sizes.equal.num_prompt_tokens + sizes.equal.num_output_tokens
    else:
        shape, num_rows, num_requests = repr(sizes.skewed), sizes.rows, sizes.skewed.num_requests
        longest = sizes.skewed.num_prompt_tokens + sizes.skewed.longest
    most = {_UNCACHED: sizes.num_uncached, "naive": sizes.num_naive}.get(name, num_requests)

    def prompts_of(run: int) -> list[Prompt]:
        equal = workload == "equal"
        prompts = equal_prompts(sizes.equal, most, run) if equal else lognormal_prompts(sizes.skewed, run)
        return prompts[:most]

    return Case(
        f"{workload}: {name}",
        {"workload": shape, "requests": most, "runs": sizes.runs},
        partial(answered, prompts_of=prompts_of, num_runs=sizes.runs, num_warm_up=num_rows),
        (f"--max-num-seqs={num_rows}", f"--max-model-len={longest}"),
        ("--no-enable-prefix-caching", *POLICIES[name]),
    )


if __name__ == "__main__":
    sys.exit(main(__doc__, NAME, cases))
