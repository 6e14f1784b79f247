"""For which numbers of rows and tokens there are steps over static buffers: as few as waste little on padding."""

from collections.abc import Sequence

import numpy as np

from executor_svc.forward import BatchShape

_FIRST_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64)
_MAX_PADDED_SHARE = 0.1
_SIZE_STEP = 8
# Tokens of steps with prefills. What is left of a cached prompt is often within a block: 16 tokens alone still take the
# layers of small batches. A product's tiles are of 128 tokens: sizes between saved nothing, and 320 cost more than 384.
# Beyond 1,024 less than an eighth is padding.
_FEW_TOKENS = (16, 32, 64)
_TOKEN_STEPS = ((128, 2048, 128), (2048, 4096, 256), (4096, 8192, 512))
_MOST_TOKENS = 8192
# Decode rows among them: they decide in how many shares attention reads their contexts.
_DECODES_AMONG_FEW, _DECODES_AMONG_MANY, _MANY_TOKENS = (0, 8, 64, 256), (0, 64, 256), 512
# A layer of as many operations takes the device longer than the host takes to queue it kernel by kernel, so its passes
# run without a graph, and without padding: an H200 computes for some 2 ms, and a layer is queued in at most 0.9.
_HIDING_OPERATIONS = 1.5e12
# A prefill of fewer tokens is taken to be rare: a batch of many goes into a larger shape.
_TOKENS_PER_PREFILL = 8
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


def captured_tokens(weights_per_layer: int, max_num_batched_tokens: int) -> int:
    """The most tokens of a step with prefills whose work does not hide its launches."""
    most_tokens = int(_HIDING_OPERATIONS / (2 * weights_per_layer))
    return max(1, min(max_num_batched_tokens, _MOST_TOKENS, most_tokens))


def mixed_shapes(max_num_seqs: int, most_tokens: int) -> list[BatchShape]:
    """Shapes of steps with prefills of up to `most_tokens` tokens, ascending; with up to `max_num_seqs` decode rows."""
    shapes = {
        _mixed_shape(size, min(num_decodes, max_num_seqs, size), most_tokens)
        for size in _token_sizes(most_tokens)
        for num_decodes in (_DECODES_AMONG_MANY if size > _MANY_TOKENS else _DECODES_AMONG_FEW)
    }
    return sorted(shapes, key=lambda shape: (shape.num_tokens, shape.num_decodes))


def _token_sizes(most_tokens: int) -> list[int]:
    sizes = [*_FEW_TOKENS, *(size for steps in _TOKEN_STEPS for size in range(*steps))]
    return [*(size for size in sizes if size < most_tokens), most_tokens]


def _mixed_shape(num_tokens: int, num_decodes: int, most_tokens: int) -> BatchShape:
    num_prefills = num_tokens
    if num_tokens < most_tokens:
        # Of the decode rows half are taken to be padding.
        num_prefills = (num_tokens - num_decodes // 2) // _TOKENS_PER_PREFILL
    return BatchShape(num_tokens, num_decodes, max(1, min(num_prefills, _MOST_PREFILLS)))


def bucket_for(num_rows: int, sizes: list[int]) -> int:
    """The smallest size that holds `num_rows`, which must not be above the largest."""
    return sizes[int(np.searchsorted(sizes, num_rows))]


def shape_for(needed: BatchShape, shapes: Sequence[BatchShape]) -> BatchShape | None:
    """The first shape that holds a batch; None where none does."""
    for shape in shapes:
        if (
            needed.num_tokens <= shape.num_tokens
            and needed.num_decodes <= shape.num_decodes
            and needed.num_prefills <= shape.num_prefills
        ):
            return shape
    return None
