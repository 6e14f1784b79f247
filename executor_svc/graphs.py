"""Steps over static buffers for batches of every size, and on CUDA a graph of each.

Decode steps are captured whole: inputs gathered from the batch state, model, sampling, write-back. Steps with prefills
are two graphs: the forward pass, by tokens, and what samples behind it, by rows. All graphs share one pool of memory,
as they run one after the other on one stream and leave their results in tensors outside of it.
"""

import gc
import time
from collections.abc import Sequence

import numpy as np
import structlog
import torch

from executor_svc.bucket_sizes import bucket_for, bucket_sizes, mixed_shapes, shape_for
from executor_svc.forward import BatchShape, ForwardBatch, pack_batch
from executor_svc.model_runner import ModelRunner
from executor_svc.plan import Prefill
from executor_svc.static_step import StaticStep
from nanoserve.arrays import Int32Array

_NO_ROWS: Int32Array = np.empty(0, np.int32)

_log = structlog.get_logger(__name__)


class DecodeBuckets:
    """Whole decode steps for every number of rows: see DecodeSteps."""

    def __init__(self, runner: ModelRunner, max_num_seqs: int, logits: torch.Tensor) -> None:
        """`logits`, of static_logits, may be shared with other steps."""
        self._dummy_row, self._logits = runner.state.dummy_row, logits
        self._sizes = bucket_sizes(max_num_seqs)
        self._steps = {size: _DecodeStep(runner, size, logits[:size]) for size in self._sizes}

    def run(self, rows: Int32Array) -> tuple[torch.Tensor, torch.Tensor]:
        size = bucket_for(len(rows), self._sizes)
        step = self._steps[size]
        if not np.array_equal(rows, step.rows):
            step.static.load(pack_batch(step.shape, rows, (), self._dummy_row))
            step.rows = rows
        step.static.compute()
        return step.results, self._logits[:size]

    def steps(self) -> list[StaticStep]:
        """All of them."""
        return [step.static for step in self._steps.values()]


class _DecodeStep:
    """A decode step of up to so many rows."""

    def __init__(self, runner: ModelRunner, size: int, logits: torch.Tensor) -> None:
        self.shape, self.rows = BatchShape(size, size, 0), _NO_ROWS
        """`rows` are those that were loaded last."""
        self.results = torch.zeros(2, size, dtype=torch.int32, device=logits.device)

        def body(packed: torch.Tensor) -> None:
            runner.decode_step(ForwardBatch.of(self.shape, packed), logits, self.results)

        packed = pack_batch(self.shape, self.rows, (), runner.state.dummy_row)
        self.static = StaticStep(runner.state, packed, body, size)


class MixedBuckets:
    """Forward passes with prefills, of every shape that is worth it, and sampling behind them: see MixedSteps."""

    def __init__(
        self, runner: ModelRunner, max_num_seqs: int, most_tokens: int, logits: torch.Tensor
    ) -> None:
        """For passes of up to `most_tokens` tokens. `logits`, of static_logits, may be shared with other steps."""
        self._dummy_row = runner.state.dummy_row
        self._shapes = mixed_shapes(max_num_seqs, most_tokens)
        weight = runner.model.embed_tokens.weight
        self._hidden = torch.zeros(most_tokens, weight.shape[1], dtype=weight.dtype, device=weight.device)
        self._passes = {shape: _MixedPass(runner, shape, self._hidden) for shape in self._shapes}
        self._sizes, self._logits = bucket_sizes(max_num_seqs), logits
        self._samples = {size: _SampleStep(runner, self._hidden, logits[:size]) for size in self._sizes}

    def run(self, decode_rows: Int32Array, prefills: Sequence[Prefill]) -> torch.Tensor | None:
        shape = shape_for(BatchShape.of(decode_rows, prefills), self._shapes)
        if shape is None:
            return None
        step = self._passes[shape]
        step.static.load(pack_batch(shape, decode_rows, prefills, self._dummy_row))
        step.static.compute()
        return self._hidden

    def sample(
        self, last_tokens: Int32Array, rows: Int32Array, positions: Int32Array
    ) -> tuple[torch.Tensor, torch.Tensor]:
        num_rows = len(rows)
        size = bucket_for(num_rows, self._sizes)
        packed = np.zeros((3, size), np.int32)
        packed[1].fill(self._dummy_row)
        packed[:, :num_rows] = last_tokens, rows, positions
        step = self._samples[size]
        step.static.load(packed.reshape(-1))
        step.static.compute()
        return step.results, self._logits[:size]

    def steps(self) -> list[StaticStep]:
        """All of them."""
        passes = [step.static for step in self._passes.values()]
        return [*passes, *(step.static for step in self._samples.values())]


class _MixedPass:
    """A forward pass of a shape, into `hidden`, [at least num_tokens, hidden_size]."""

    def __init__(self, runner: ModelRunner, shape: BatchShape, hidden: torch.Tensor) -> None:
        def body(packed: torch.Tensor) -> None:
            runner.forward_step(ForwardBatch.of(shape, packed), hidden[: shape.num_tokens])

        packed = pack_batch(shape, _NO_ROWS, (), runner.state.dummy_row)
        self.static = StaticStep(runner.state, packed, body, shape.num_tokens)


class _SampleStep:
    """Sampling of as many rows as `logits` has."""

    def __init__(self, runner: ModelRunner, hidden: torch.Tensor, logits: torch.Tensor) -> None:
        size = len(logits)
        self.results = torch.zeros(2, size, dtype=torch.int32, device=logits.device)

        def body(packed: torch.Tensor) -> None:
            last_tokens, rows, positions = packed.view(3, size).unbind()
            runner.sample_step(last_tokens, rows, positions, hidden, logits, self.results)

        packed = np.zeros((3, size), np.int32)
        packed[1].fill(runner.state.dummy_row)
        self.static = StaticStep(runner.state, packed.reshape(-1), body, size)


def static_logits(runner: ModelRunner, max_num_seqs: int) -> torch.Tensor:
    """A place for the logits of as many rows, [max_num_seqs, vocab_size]; of a rank: of its own columns."""
    weight = runner.model.lm_head.weight
    return torch.zeros(max_num_seqs, len(weight), dtype=weight.dtype, device=weight.device)


@torch.inference_mode()
def capture(steps: Sequence[StaticStep], device: torch.device) -> None:
    """Captures steps, the largest first, as it takes the memory that the smaller ones then share."""
    torch.cuda.synchronize(device)
    gc.collect()  # frees what lies on the device now, as nothing may be freed within a capture
    torch.cuda.empty_cache()
    begin, free = time.monotonic(), torch.cuda.mem_get_info(device)[0]
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)
    for step in sorted(steps, key=lambda step: -step.num_tokens):
        step.capture(pool, stream)
    _log.info(
        "graphs_captured",
        num_graphs=len(steps),
        seconds=round(time.monotonic() - begin, 3),
        bytes=free - torch.cuda.mem_get_info(device)[0],
    )
