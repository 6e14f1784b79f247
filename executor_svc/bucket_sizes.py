"""For which numbers of rows and tokens there are steps over static buffers: as few as waste little on padding."""

from collections.abc import Sequence

import numpy as np

from executor_svc.forward import BatchShape

_FIRST_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64)
_MAX_PADDED_SHARE = 0.1
_SIZE_STEP = 8
# Of steps with prefills: prefill tokens, and decode rows beside so many. The host takes longer to queue a
# pass kernel by kernel than most run: without graphs, steps up to the largest would wait for it.
# What is left of a cached prompt is often within a block: 16 tokens alone still take the layers of small batches.
_MIXED_SIZES = (
    ((16,), (0,)),
    ((32, 64, 128, 256, 384, 512), (0, 8, 32, 64, 128, 256)),
    ((768, 1024, 1280, 1536, 2048), (0, 32, 128, 256)),
    ((2560, 3072, 4096, 5120, 6144, 7168, 8192), (0, 64, 256)),
)
# A prefill of fewer tokens is taken to be rare: a batch of many goes into a larger shape.
_TOKENS_PER_PREFILL = 4
_MOST_PREFILLS = 64


def bucket_sizes(max_num_seqs: int) -> list[int]:
    """Batch sizes, ascending, up to `max_num_seqs`: past 64 rows less than a tenth of a batch is ever padding."""
    sizes = [size for size in _FIRST_SIZES if size < max_num_seqs]
    while sizes and sizes[-1] >= _FIRST_SIZES[-1]:
        # A batch of one row more than the last size is the most padded one.
        largest = int((sizes[-1] + 1) / (1 - _MAX_PADDED_SHARE)) // _SIZE_STEP * _SIZE_STEP
        if largest >= max_num_seqs:
            break
        sizes.append(largest)
    return [*sizes, max_num_seqs]


def mixed_shapes(max_num_seqs: int, max_num_batched_tokens: int) -> list[BatchShape]:
    """Shapes of steps with prefills, ascending in tokens; no more of either kind than a step may have."""
    sizes = {
        (min(num_tokens, max_num_batched_tokens), min(num_decodes, max_num_seqs))
        for tokens, decodes in _MIXED_SIZES
        for num_tokens in tokens
        for num_decodes in decodes
    }
    return [
        BatchShape(num_decodes, _most_prefills(num_tokens, max_num_batched_tokens), num_tokens)
        for num_tokens, num_decodes in sorted(sizes)
    ]


def _most_prefills(num_tokens: int, max_num_batched_tokens: int) -> int:
    if num_tokens < max_num_batched_tokens:
        num_tokens //= _TOKENS_PER_PREFILL
    return max(1, min(num_tokens, _MOST_PREFILLS))


def bucket_for(num_rows: int, sizes: list[int]) -> int:
    """The smallest size that holds `num_rows`, which must not be above the largest."""
    return sizes[int(np.searchsorted(sizes, num_rows))]


def shape_for(needed: BatchShape, shapes: Sequence[BatchShape]) -> BatchShape | None:
    """The first shape that holds a batch; None where none does."""
    for shape in shapes:
        if (
            needed.num_decodes <= shape.num_decodes
            and needed.num_prefills <= shape.num_prefills
            and needed.num_prefill_tokens <= shape.num_prefill_tokens
        ):
            return shape
    return None
