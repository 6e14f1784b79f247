"""Work over the static tensors of one batch shape: computed as it is, or captured once and replayed as a CUDA graph."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from executor_svc.batch import BatchState
from executor_svc.forward import BatchShape, ForwardBatch, pack_batch
from executor_svc.plan import Prefill
from nanoserve.arrays import Int32Array

_NO_ROWS: Int32Array = np.empty(0, np.int32)


class StaticStep:
    """The batch of a shape on the device, and what is computed of it."""

    def __init__(self, state: BatchState, shape: BatchShape, body: Callable[[ForwardBatch], None]) -> None:
        """`body` reads the batch, and writes only to tensors that live as long as the step. At first all is padding."""
        self._state = state
        self._body = body
        self._held: tuple[Int32Array, Sequence[Prefill]] = _NO_ROWS, ()
        self._packed = torch.tensor(pack_batch(shape, *self._held, state.dummy_row), device=state.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self.batch = ForwardBatch.of(shape, self._packed)

    def load(self, decode_rows: Int32Array, prefills: Sequence[Prefill]) -> None:
        """Sets the batch, which must fit into the shape; decode rows alone are uploaded only where they change."""
        held_rows, held_prefills = self._held
        if not prefills and not held_prefills and np.array_equal(decode_rows, held_rows):
            return
        packed = pack_batch(self.batch.shape, decode_rows, prefills, self._state.dummy_row)
        (staged,) = self._state.staging.upload([packed])
        self._packed.copy_(staged)
        self._held = decode_rows, prefills

    def compute(self) -> None:
        """Computes what was loaded, on the current stream."""
        if self._graph is not None:
            self._graph.replay()
        else:
            self._body(self.batch)

    def capture(self, pool: Any, stream: torch.cuda.Stream) -> None:
        """Captures the work in a graph that shares the memory of `pool`; waits for the device."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            # Kernels are compiled, and libraries take their workspaces, before and not within the capture.
            self._body(self.batch)
            stream.synchronize()
            # Not by torch.cuda.graph, which looks for garbage each time, once for each of dozens of graphs.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                self._body(self.batch)
            finally:
                graph.capture_end()
        self._graph = graph
