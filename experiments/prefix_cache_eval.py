"""Latency of a prompt whose long prefix is new (cold) or was computed for another request (warm), by its length.

    python experiments/prefix_cache_eval.py --model-shape 0.6b --device cuda --out plots/data/h200-0.6b

Each prompt is a shared prefix and a block of tokens of its own; one token is generated. Medians of a few prefixes.
With prefix caching switched off, the second request costs what the first one does.
"""

import argparse
import random
import sys
from functools import partial
from statistics import median

from benchmarks.workloads import Prompt
from experiments.harness import Bench, Case, main
from experiments.sizes import Sizes
from experiments.store import Row

NAME = "prefix_cache_eval"
_OWN_TOKENS = 16


def cases(sizes: Sizes, arguments: argparse.Namespace) -> list[Case]:
    """Every length with the cache; and all without it."""
    executor_flags = (f"--max-model-len={max(sizes.prefix_lengths) + _OWN_TOKENS + 16}", "--max-num-seqs=16")
    return [
        Case(
            f"caching {'on' if caching else 'off'}, {length}",
            {"prefix": length, "own": _OWN_TOKENS, "caching": caching, "reps": sizes.reps},
            partial(_measure, sizes=sizes, length=length, caching=caching),
            executor_flags,
            () if caching else ("--no-enable-prefix-caching",),
        )
        for caching in (True, False)
        for length in sizes.prefix_lengths
    ]


def _measure(bench: Bench, sizes: Sizes, length: int, caching: bool) -> Row:
    times: dict[str, list[float]] = {"cold": [], "warm": []}
    before = bench.server.load()
    for rep in range(sizes.reps + 1):  # the first is the warm-up
        source = random.Random(f"prefix {length} {rep}")
        prefix = _ids(source, length, sizes)
        for values in times.values():
            prompt = Prompt((*prefix, *_ids(source, _OWN_TOKENS, sizes)), 1)
            latency = bench.clients.run([prompt]).streams[0].latency
            if rep:
                values.append(round(latency * 1e3, 3))
    return {
        "prefix": length,
        "caching": caching,
        "cold_ms": median(times["cold"]),
        "warm_ms": median(times["warm"]),
        "cold_over_warm": round(median(times["cold"]) / median(times["warm"]), 5),
        "hit_tokens": bench.server.load().num_prefix_hit_tokens - before.num_prefix_hit_tokens,
        "cold_all": times["cold"],
        "warm_all": times["warm"],
    }


def _ids(source: random.Random, count: int, sizes: Sizes) -> tuple[int, ...]:
    return tuple(source.randint(0, sizes.equal.max_token_id) for _ in range(count))


if __name__ == "__main__":
    sys.exit(main(__doc__, NAME, cases))
