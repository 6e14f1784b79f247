"""The workloads that engines are compared by: token ids in, numbers of tokens out, the same for every run of a seed.

W1, W2: many requests of random lengths at once (nano-vllm's own benchmark). W3: steady decode of equal requests.
W4: one long prompt, cold then cached. W5: a closed loop of equal requests. W6: outputs of very different lengths.
Prompts are ids, so no tokenizer counts.
"""

import math
import random
from dataclasses import dataclass

MAX_TOKEN_ID = 10_000
_SHORTEST, _LONGEST = 100, 1024


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request of a workload: `num_output_tokens` are generated whatever they are (ignore_eos)."""

    token_ids: tuple[int, ...]
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class ThroughputWorkload:
    """Requests sent all at once; lengths are uniform in [shortest, longest], of prompts and of outputs."""

    num_requests: int
    shortest: int = _SHORTEST
    longest: int = _LONGEST
    max_token_id: int = MAX_TOKEN_ID


W1 = ThroughputWorkload(num_requests=256)
W2 = ThroughputWorkload(num_requests=128)

TEMPERATURE = 0.6
"""Of every workload."""


@dataclass(frozen=True, slots=True)
class EqualWorkload:
    """Requests of one shape: W3, W4 and W5."""

    num_prompt_tokens: int
    num_output_tokens: int
    max_token_id: int = MAX_TOKEN_ID


W3 = EqualWorkload(num_prompt_tokens=128, num_output_tokens=256)
W3_BATCHES = (1, 8, 64)
W4 = EqualWorkload(num_prompt_tokens=4096, num_output_tokens=1)
W5 = EqualWorkload(num_prompt_tokens=512, num_output_tokens=128)
W5_NUM_REQUESTS = {1: 32, 16: 384, 64: 1024, 256: 2048}
"""Requests of a run of W5, by concurrency: enough that its start and its end count for little."""


@dataclass(frozen=True, slots=True)
class LognormalWorkload:
    """Requests sent all at once, whose output lengths are lognormal(ln median, sigma), clipped to [shortest, longest].

    Request i begins with the prefix i mod `num_prefixes`, of `num_prefix_tokens` tokens; 0 prefixes: none is shared.
    """

    num_requests: int
    num_prompt_tokens: int
    median_output_tokens: int
    shortest: int
    longest: int
    sigma: float = 1.0
    num_prefixes: int = 0
    num_prefix_tokens: int = 0
    max_token_id: int = MAX_TOKEN_ID


W6 = LognormalWorkload(
    num_requests=512, num_prompt_tokens=128, median_output_tokens=128, shortest=16, longest=1024
)
"""With at most 64 rows."""


def largest_token_id(vocab_size: int) -> int:
    """The largest id in prompts for a model with so many, whatever the workload."""
    return min(MAX_TOKEN_ID, vocab_size - 1)


def throughput_prompts(workload: ThroughputWorkload, run: int = 0) -> list[Prompt]:
    """Run 0 has the ids and lengths of `random.Random(0)`; later runs the same lengths with ids of their own."""
    source = random.Random(0)
    prompts = [
        _ids(source, source.randint(workload.shortest, workload.longest), workload.max_token_id)
        for _ in range(workload.num_requests)
    ]
    lengths = [source.randint(workload.shortest, workload.longest) for _ in prompts]
    if run:
        fresh = random.Random(run)
        prompts = [_ids(fresh, len(prompt), workload.max_token_id) for prompt in prompts]
    return [Prompt(prompt, length) for prompt, length in zip(prompts, lengths, strict=True)]


def equal_prompts(workload: EqualWorkload, num_requests: int, run: int = 0) -> list[Prompt]:
    """Requests of one shape; each run of each workload has ids of its own."""
    source = random.Random(f"{workload} {run}")
    return [
        Prompt(_ids(source, workload.num_prompt_tokens, workload.max_token_id), workload.num_output_tokens)
        for _ in range(num_requests)
    ]


def lognormal_prompts(workload: LognormalWorkload, run: int = 0) -> list[Prompt]:
    """The output lengths are those of seed 0, whatever the run; each run has ids of its own, its prefixes included."""
    lengths = random.Random(0)
    source = random.Random(f"{workload} {run}")
    largest = workload.max_token_id
    prefixes = [_ids(source, workload.num_prefix_tokens, largest) for _ in range(workload.num_prefixes)]
    prompts = []
    for number in range(workload.num_requests):
        prefix = prefixes[number % len(prefixes)] if prefixes else ()
        own = _ids(source, workload.num_prompt_tokens - len(prefix), largest)
        length = round(lengths.lognormvariate(math.log(workload.median_output_tokens), workload.sigma))
        prompts.append(Prompt(prefix + own, min(max(length, workload.shortest), workload.longest)))
    return prompts


def _ids(source: random.Random, count: int, largest: int) -> tuple[int, ...]:
    return tuple(source.randint(0, largest) for _ in range(count))
