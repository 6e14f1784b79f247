"""Batches for the attention kernels on CUDA: their tensors, their check against float32, and the time of a call."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from executor_svc.attention.reference import attend
from executor_svc.kernels.decode_attention import DecodeConfig, decode_attention
from executor_svc.kernels.prefill_attention import PrefillConfig, prefill_attention

NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE = 8, 128, 16
_MOST_ERROR = 0.01  # of the reference's norm: bfloat16 rounds the weights and the output
_REPLAYS = 7
_GRAPH_SECONDS = 0.004  # of work in one graph, so that starting it weighs little


@dataclass(frozen=True, slots=True)
class Shape:
    """Rows of equal lengths: `count` tokens each at the end of `context` positions."""

    num_heads: int
    rows: int
    context: int
    count: int = 1

    def __str__(self) -> str:
        chunk = f"{self.count} of " if 1 < self.count < self.context else ""
        return f"{self.num_heads} heads {self.rows} x {chunk}{self.context}"

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that a call must read."""
        return 4 * self.rows * self.context * NUM_KV_HEADS * HEAD_DIM

    @property
    def operations(self) -> int:
        """Multiplications and additions over the visible pairs."""
        pairs = self.count * self.context - self.count * (self.count - 1) // 2
        return 4 * HEAD_DIM * self.num_heads * self.rows * pairs


class Batch:
    """A shape's tensors, with so many copies of its rows that a call finds nothing of its own in the L2 cache."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        device = torch.device("cuda")
        cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self.num_copies = max(1, math.ceil(4 * cache_bytes / shape.kv_bytes))
        width = -(-shape.context // BLOCK_SIZE)
        num_blocks = self.num_copies * shape.rows * width + 1
        torch.manual_seed(0)
        cache_shape = (num_blocks, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM)
        self.keys = torch.empty(cache_shape, dtype=torch.bfloat16, device=device).normal_()
        self.values = torch.empty_like(self.keys).normal_()
        blocks = torch.randperm(num_blocks - 1, device=device).int() + 1
        self.tables = blocks.view(self.num_copies, shape.rows, width)
        self.query = torch.randn(
            shape.rows * shape.count, shape.num_heads, HEAD_DIM, dtype=torch.bfloat16, device=device
        )
        self.rows = torch.arange(shape.rows, dtype=torch.int32, device=device)
        self.starts = torch.arange(shape.rows + 1, dtype=torch.int32, device=device) * shape.count
        self.lengths = torch.full_like(self.rows, shape.context - shape.count)

    def decode(self, copy: int, num_splits: int, config: DecodeConfig | None) -> torch.Tensor:
        """One call on a copy of the rows."""
        caches = self.keys, self.values, self.tables[copy]
        return decode_attention(self.query, *caches, self.rows, self.lengths, num_splits, config=config)

    def prefill(self, copy: int, config: PrefillConfig | None) -> torch.Tensor:
        """One call on a copy of the rows."""
        caches = self.keys, self.values, self.tables[copy]
        return prefill_attention(self.query, *caches, self.rows, self.starts, self.lengths, config=config)

    def check(self, output: torch.Tensor, copy: int) -> None:
        """Compares up to four rows, and up to 256 of their first and of their last tokens, with float32."""
        shape, part = self.shape, min(256, self.shape.count)
        query = self.query.view(shape.rows, shape.count, shape.num_heads, HEAD_DIM)
        positions = torch.arange(shape.context, device=query.device)
        for row in range(0, shape.rows, max(1, shape.rows // 4)):
            keys, values = (
                cache[self.tables[copy, row].long()].flatten(0, 1)[None, : shape.context]
                for cache in (self.keys, self.values)
            )
            for begin in {0, shape.count - part}:
                seen = torch.arange(part, device=query.device) + shape.context - shape.count + begin
                expected = attend(
                    query[row, None, begin : begin + part].float(),
                    keys,
                    values,
                    (positions <= seen[:, None])[None],
                    torch.ones_like(positions, dtype=torch.bool)[None],
                )[0]
                actual = output.view_as(query)[row, begin : begin + part].float()
                error = ((actual - expected).norm() / expected.norm()).item()
                if not error < _MOST_ERROR:
                    raise SystemExit(f"{shape}: row {row} is wrong by {error:.3g} of its norm")

    def microseconds(self, call: Callable[[int], torch.Tensor], least_seconds: float) -> float:
        """Median time of call(copy) within a CUDA graph that goes round the copies; checks its first output."""
        self.check(call(0), 0)
        rounds = max(1, math.ceil(min(_GRAPH_SECONDS / least_seconds, 100) / self.num_copies))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for copy in list(range(self.num_copies)) * rounds:
                call(copy)
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        times: list[float] = []
        for replay in range(_REPLAYS + 1):
            start.record()
            graph.replay()
            stop.record()
            torch.cuda.synchronize()
            if replay:
                times.append(start.elapsed_time(stop) * 1000 / (self.num_copies * rounds))
        return median(times)
