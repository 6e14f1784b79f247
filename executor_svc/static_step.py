"""Work over static tensors: computed as it is, or captured once and replayed as a CUDA graph."""

from collections.abc import Callable
from typing import Any

import torch

from executor_svc.batch import BatchState
from nanoserve.arrays import Int32Array


class StaticStep:
    """An input on the device, and what is computed of it."""

    def __init__(
        self,
        state: BatchState,
        packed: Int32Array,
        body: Callable[[torch.Tensor], None],
        num_tokens: int,
    ) -> None:
        """`body` reads the input, at first `packed`, and the state; it writes only to what lives as long as the step.

        `num_tokens` says how large it is beside others.
        """
        self._staging = state.staging
        self._body = body
        self.packed = torch.tensor(packed, device=state.device)
        """The input on the device."""
        self.num_tokens = num_tokens
        self._graph: torch.cuda.CUDAGraph | None = None

    def load(self, packed: Int32Array) -> None:
        """Sets the input, of the length that it has."""
        (staged,) = self._staging.upload([packed])
        self.packed.copy_(staged)

    def compute(self) -> None:
        """Computes what was loaded, on the current stream."""
        if self._graph is not None:
            self._graph.replay()
        else:
            self._body(self.packed)

    def capture(self, pool: Any, stream: torch.cuda.Stream) -> None:
        """Captures the work in a graph that shares the memory of `pool`; waits for the device."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            # Kernels are compiled, and libraries take their workspaces, before and not within the capture.
            self._body(self.packed)
            stream.synchronize()
            # Not by torch.cuda.graph, which looks for garbage each time, once for each of dozens of graphs.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                self._body(self.packed)
            finally:
                graph.capture_end()
        self._graph = graph
