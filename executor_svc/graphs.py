"""Decode steps over static buffers, a set for each of a few batch sizes, and on CUDA a graph of each.

A graph replays a whole step: inputs gathered from the batch state, model, sampling, write-back. All share one pool of
memory, as they run one after the other on one stream, and their results lie outside of it.
"""

import time
from typing import Any

import numpy as np
import structlog
import torch

from executor_svc.forward import BatchShape, ForwardBatch, pack_batch
from executor_svc.model_runner import ModelRunner
from nanoserve.arrays import Int32Array

_FIRST_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64)
_MAX_PADDED_SHARE = 0.1
_SIZE_STEP = 8

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


def bucket_for(num_rows: int, sizes: list[int]) -> int:
    """The smallest size that holds `num_rows`, which must not be above the largest."""
    return sizes[int(np.searchsorted(sizes, num_rows))]


class DecodeBuffers:
    """The static tensors of a decode step of one batch size, and the step over them."""

    def __init__(self, runner: ModelRunner, size: int, logits: torch.Tensor) -> None:
        """`logits`: [at least size, vocab_size], which the steps of all sizes may share."""
        self._runner = runner
        self._shape = BatchShape(size)
        device, dummy_row = runner.state.device, runner.state.dummy_row
        self._held = pack_batch(self._shape, np.empty(0, np.int32), (), dummy_row)
        self._packed = torch.tensor(self._held, device=device)
        self._batch = ForwardBatch.of(self._shape, self._packed)
        self.logits = logits[:size]
        self.results = torch.zeros(2, size, dtype=torch.int32, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None

    def load(self, rows: Int32Array) -> None:
        """Sets the rows, at most `size`; uploads them only where they are others than before."""
        packed = pack_batch(self._shape, rows, (), self._runner.state.dummy_row)
        if np.array_equal(packed, self._held):
            return
        (staged,) = self._runner.state.staging.upload([packed])
        self._packed.copy_(staged)
        self._held = packed

    def compute(self) -> None:
        """Computes the step of the rows loaded, on the current stream."""
        if self._graph is not None:
            self._graph.replay()
        else:
            self._runner.decode_step(self._batch, self.logits, self.results)

    def capture(self, pool: Any, stream: torch.cuda.Stream) -> None:
        """Captures the step, its rows being the dummy row alone; waits for the device."""
        with torch.cuda.stream(stream):
            # Kernels are compiled, and libraries take their workspaces, before and not within the capture.
            self.compute()
        torch.cuda.synchronize(stream.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self.compute()
        self._graph = graph


class DecodeBuckets:
    """Decode steps for every number of rows: see DecodeSteps."""

    def __init__(self, runner: ModelRunner, max_num_seqs: int) -> None:
        self.sizes = bucket_sizes(max_num_seqs)
        weight = runner.model.lm_head.weight
        logits = torch.zeros(max_num_seqs, len(weight), dtype=weight.dtype, device=weight.device)
        self._buffers = {size: DecodeBuffers(runner, size, logits) for size in self.sizes}

    def run(self, rows: Int32Array) -> tuple[torch.Tensor, torch.Tensor]:
        buffers = self._buffers[bucket_for(len(rows), self.sizes)]
        buffers.load(rows)
        buffers.compute()
        return buffers.results, buffers.logits

    @torch.inference_mode()
    def compute_largest(self) -> None:
        """Computes a step of the largest size with padding alone."""
        self._buffers[self.sizes[-1]].compute()

    @torch.inference_mode()
    def capture(self) -> None:
        """Captures every size, the largest first, as it takes the memory that the smaller ones then share."""
        device = next(iter(self._buffers.values())).logits.device
        torch.cuda.synchronize(device)
        begin, free = time.monotonic(), torch.cuda.mem_get_info(device)[0]
        pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)
        for size in reversed(self.sizes):
            self._buffers[size].capture(pool, stream)
        _log.info(
            "graphs_captured",
            sizes=self.sizes,
            seconds=round(time.monotonic() - begin, 3),
            bytes=free - torch.cuda.mem_get_info(device)[0],
        )
