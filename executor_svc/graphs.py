"""Steps over static buffers for batches of every size, and on CUDA a graph of each.

Decode steps are captured whole: inputs gathered from the batch state, model, sampling, write-back. Steps with prefills
are captured up to the hidden states. All graphs share one pool of memory, as they run one after the other on one
stream and leave their results in tensors outside of it.
"""

import gc
import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import structlog
import torch

from executor_svc.forward import BatchShape, ForwardBatch
from executor_svc.model_runner import ModelRunner
from executor_svc.plan import Prefill
from executor_svc.static_step import StaticStep
from nanoserve.arrays import Int32Array

_FIRST_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64)
_MAX_PADDED_SHARE = 0.1
_SIZE_STEP = 8
# Of steps with prefills: prefill tokens, and decode rows beside so many. The host takes longer to queue a
# pass kernel by kernel than most run: without graphs, steps up to the largest would wait for it.
_MIXED_SIZES = (
    ((32, 64, 128, 256, 384, 512), (8, 32, 64, 128, 256)),
    ((768, 1024, 1280, 1536, 2048), (32, 128, 256)),
    ((2560, 3072, 4096, 5120, 6144, 7168, 8192), (64, 256)),
)
_MOST_PREFILLS = 64

_log = structlog.get_logger(__name__)


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
        BatchShape(num_decodes, min(num_tokens, _MOST_PREFILLS), num_tokens)
        for num_tokens, num_decodes in sorted(sizes)
    ]


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


class DecodeBuckets:
    """Whole decode steps for every number of rows: see DecodeSteps."""

    def __init__(self, runner: ModelRunner, max_num_seqs: int) -> None:
        self._sizes = bucket_sizes(max_num_seqs)
        weight, device = runner.model.lm_head.weight, runner.state.device
        self._logits = torch.zeros(max_num_seqs, len(weight), dtype=weight.dtype, device=device)
        self._results = {size: torch.zeros(2, size, dtype=torch.int32, device=device) for size in self._sizes}
        self._steps = {}
        for size, results in self._results.items():
            body = partial(runner.decode_step, logits=self._logits[:size], results=results)
            self._steps[size] = StaticStep(runner.state, BatchShape(size), body)

    def run(self, rows: Int32Array) -> tuple[torch.Tensor, torch.Tensor]:
        size = bucket_for(len(rows), self._sizes)
        step = self._steps[size]
        step.load(rows, ())
        step.compute()
        return self._results[size], self._logits[:size]

    def steps(self) -> list[StaticStep]:
        """All, the largest first."""
        return [self._steps[size] for size in reversed(self._sizes)]


class MixedBuckets:
    """Forward passes with prefills, of every shape that is worth it: see ForwardSteps."""

    def __init__(self, runner: ModelRunner, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self._shapes = mixed_shapes(max_num_seqs, max_num_batched_tokens)
        weight = runner.model.embed_tokens.weight
        most = max(shape.num_tokens for shape in self._shapes)
        self._hidden = torch.zeros(most, weight.shape[1], dtype=weight.dtype, device=weight.device)
        self._steps = {}
        for shape in self._shapes:
            body = partial(runner.forward_step, hidden=self._hidden[: shape.num_tokens])
            self._steps[shape] = StaticStep(runner.state, shape, body)

    def run(
        self, decode_rows: Int32Array, prefills: Sequence[Prefill]
    ) -> tuple[ForwardBatch, torch.Tensor] | None:
        shape = shape_for(BatchShape.of(decode_rows, prefills), self._shapes)
        if shape is None:
            return None
        step = self._steps[shape]
        step.load(decode_rows, prefills)
        step.compute()
        return step.batch, self._hidden[: shape.num_tokens]

    def steps(self) -> list[StaticStep]:
        """All, the largest first."""
        return sorted(self._steps.values(), key=lambda step: -step.batch.shape.num_tokens)


@torch.inference_mode()
def capture(steps: Sequence[StaticStep], device: torch.device) -> None:
    """Captures steps, the largest first, as it takes the memory that the smaller ones then share."""
    torch.cuda.synchronize(device)
    gc.collect()  # frees what lies on the device now, as nothing may be freed within a capture
    torch.cuda.empty_cache()
    begin, free = time.monotonic(), torch.cuda.mem_get_info(device)[0]
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)
    for step in sorted(steps, key=lambda step: -step.batch.shape.num_tokens):
        step.capture(pool, stream)
    _log.info(
        "graphs_captured",
        num_graphs=len(steps),
        seconds=round(time.monotonic() - begin, 3),
        bytes=free - torch.cuda.mem_get_info(device)[0],
    )
