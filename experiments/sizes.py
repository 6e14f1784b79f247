"""How large each experiment is, by model: enough to show its effect, and for the demo on two cores short."""

from dataclasses import dataclass, fields, replace
from typing import Any

from benchmarks.shapes import shape_of
from benchmarks.workloads import W3, W6, EqualWorkload, LognormalWorkload, largest_token_id


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of one model's study. `streams` requests come at once, and as many rows; lengths are in tokens."""

    streams: int
    equal: EqualWorkload
    """Of each stream, where the policies are compared on equal requests."""
    rows: int
    """Of W6."""
    skewed: LognormalWorkload
    """W6."""
    num_naive: int
    """How many of the requests the naive policies answer: one after the other, so their rate is that of all."""
    num_uncached: int
    """The same without a KV cache."""
    max_model_len: int
    pool_sequences: int
    """KV memory of the experiments on allocation and of the ablation, in sequences of `max_model_len`."""
    ablation: LognormalWorkload
    prefix_lengths: tuple[int, ...]
    decode: EqualWorkload
    batches: tuple[int, ...]
    """Of cuda_graphs."""
    resident: bool
    """Whether a GPU has the layers of one row's step as one kernel: of a small model alone."""
    roofline_batches: tuple[int, ...]
    roofline_contexts: tuple[int, ...]
    roofline_tokens: int
    """Most tokens of KV cache of a point; what is larger is left out."""
    roofline_steps: int
    prefill_tokens: tuple[int, ...]
    crash_streams: tuple[int, ...]
    crash: EqualWorkload
    ahead_streams: tuple[int, ...]
    ahead: EqualWorkload
    tp_tokens: int
    """Of each sequence of tp_scaling: more than are generated while it is timed."""
    runs: int
    """Of what is timed as a whole; the one in the middle counts."""
    tp_batch: int = 8
    reps: int = 3
    """Of what is timed request by request, after a warm-up."""


_GPU = Sizes(
    streams=256,
    equal=EqualWorkload(128, 256),
    rows=64,
    skewed=W6,
    num_naive=16,
    num_uncached=4,
    max_model_len=2048,
    pool_sequences=64,
    ablation=replace(W6, num_requests=256, num_prompt_tokens=512, num_prefixes=8, num_prefix_tokens=384),
    prefix_lengths=(512, 1024, 4096, 16_384),
    decode=W3,
    batches=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    resident=True,
    roofline_batches=(1, 8, 64, 256),
    roofline_contexts=(256, 2048, 8192),
    roofline_tokens=600_000,
    roofline_steps=512,
    prefill_tokens=(16, 64, 256, 1024, 4096),
    crash_streams=(1, 64),
    crash=EqualWorkload(512, 2048),
    ahead_streams=(1, 64),
    ahead=EqualWorkload(128, 512),
    tp_tokens=16_000,
    runs=3,
)
_DEMO = Sizes(
    streams=32,
    equal=EqualWorkload(32, 48),
    rows=8,
    skewed=LognormalWorkload(40, 32, median_output_tokens=24, shortest=4, longest=192),
    num_naive=3,
    num_uncached=2,
    max_model_len=256,
    pool_sequences=4,
    ablation=LognormalWorkload(
        24, 96, median_output_tokens=24, shortest=4, longest=96, num_prefixes=2, num_prefix_tokens=80
    ),
    prefix_lengths=(128, 512, 1024, 1920),
    decode=EqualWorkload(32, 32),
    batches=(1, 4, 16),
    resident=True,
    roofline_batches=(1, 4, 16),
    roofline_contexts=(64, 512),
    roofline_tokens=10_000,
    roofline_steps=40,
    prefill_tokens=(16, 64, 256, 1024),
    crash_streams=(1, 8),
    crash=EqualWorkload(64, 384),
    ahead_streams=(1, 8),
    ahead=EqualWorkload(32, 96),
    tp_tokens=1900,
    runs=1,
)
_QUICK = replace(
    _DEMO,
    streams=4,
    equal=EqualWorkload(8, 6),
    rows=4,
    skewed=LognormalWorkload(8, 8, median_output_tokens=6, shortest=2, longest=24),
    num_naive=2,
    num_uncached=1,
    ablation=LognormalWorkload(
        6, 24, median_output_tokens=6, shortest=2, longest=24, num_prefixes=2, num_prefix_tokens=16
    ),
    prefix_lengths=(64,),
    decode=EqualWorkload(8, 8),
    batches=(1, 2),
    roofline_batches=(2,),
    roofline_contexts=(32,),
    roofline_steps=256,
    prefill_tokens=(16,),
    crash_streams=(2,),
    crash=EqualWorkload(16, 200),
    ahead_streams=(2,),
    ahead=EqualWorkload(8, 32),
    tp_batch=2,
    reps=1,
)
_SIZES = {
    "0.6b": _GPU,
    "14b": replace(
        _GPU,
        num_naive=4,
        num_uncached=2,
        prefix_lengths=(1024, 4096),
        batches=(1, 8, 64),
        resident=False,
        roofline_tokens=270_000,
        roofline_steps=200,
        crash=EqualWorkload(512, 1024),
        runs=1,
    ),
    "demo": _DEMO,
    "quick": _QUICK,
}


def sizes_of(name: str, model_shape: str) -> Sizes:
    """The sizes of that name (a model shape, or "quick"), with prompts of ids that the model has."""
    sizes = _SIZES[name]
    largest = largest_token_id(shape_of(model_shape).vocab_size)
    workloads: dict[str, Any] = {
        entry.name: replace(value, max_token_id=largest)
        for entry in fields(Sizes)
        if isinstance(value := getattr(sizes, entry.name), EqualWorkload | LognormalWorkload)
    }
    return replace(sizes, **workloads)
