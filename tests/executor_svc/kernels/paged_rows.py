"""Rows with known keys and values in shuffled blocks of a cache that else holds NaN; their attention in float64."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Shape:
    """What a kernel is compiled for."""

    group: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype

    @property
    def num_heads(self) -> int:
        return self.group * self.num_kv_heads


SHAPES = [
    Shape(1, 2, 32, 16, torch.float32),
    Shape(2, 2, 128, 16, torch.bfloat16),
    Shape(2, 1, 96, 64, torch.float32),
    Shape(5, 2, 64, 64, torch.bfloat16),
    Shape(8, 1, 80, 256, torch.bfloat16),
]


class PagedRows:
    """Rows of the given context lengths, and a dummy row, last, whose blocks are all block 0."""

    def __init__(self, seed: int, contexts: list[int], shape: Shape, device: torch.device) -> None:
        self.shape, self.device, self.contexts = shape, device, contexts
        self.generator = torch.Generator().manual_seed(seed)
        self.keys = [self.random(length, shape.num_kv_heads) for length in contexts]
        self.values = [self.random(length, shape.num_kv_heads) for length in contexts]
        widths = [-(-length // shape.block_size) for length in contexts]
        num_blocks = sum(widths) + 3
        free = (np.random.default_rng(seed).permutation(num_blocks - 1) + 1).astype(np.int32)
        # What lies past a row's own blocks in its table is some other block.
        self.tables = torch.zeros(len(contexts) + 1, max(widths, default=1) + 2, dtype=torch.int32)
        self.tables[:-1] = int(free[-1])
        cache_shape = (num_blocks, shape.block_size, shape.num_kv_heads, shape.head_dim)
        self.key_cache = torch.full(cache_shape, torch.nan, dtype=shape.dtype)
        self.value_cache = self.key_cache.clone()
        self.key_cache[0], self.value_cache[0] = 0.0, 0.0
        for row, (width, length) in enumerate(zip(widths, contexts, strict=True)):
            blocks, free = torch.from_numpy(free[:width]), free[width:]
            self.tables[row, :width] = blocks
            slots = (blocks[:, None] * shape.block_size + torch.arange(shape.block_size)).flatten()[:length]
            self.key_cache.flatten(0, 1)[slots] = self.keys[row]
            self.value_cache.flatten(0, 1)[slots] = self.values[row]
        self.tables, self.key_cache, self.value_cache = (
            tensor.to(device) for tensor in (self.tables, self.key_cache, self.value_cache)
        )

    def random(self, length: int, num_heads: int) -> torch.Tensor:
        """Normal numbers of the cache's dtype, on the CPU: [length, num_heads, head_dim]."""
        shape = (length, num_heads, self.shape.head_dim)
        return torch.randn(shape, generator=self.generator).to(self.shape.dtype)

    def int32(self, numbers: list[int]) -> torch.Tensor:
        """On the device."""
        return torch.tensor(numbers, dtype=torch.int32, device=self.device)

    def expected(self, row: int, query: torch.Tensor, first: int) -> torch.Tensor:
        """Attention of the queries [n, num_heads, head_dim] at positions `first` on, in float64."""
        keys, values = (
            tensor[row].double().repeat_interleave(self.shape.group, 1) for tensor in (self.keys, self.values)
        )
        scores = torch.einsum("qhd,khd->hqk", query.double(), keys) * self.shape.head_dim**-0.5
        visible = torch.arange(len(keys)) <= first + torch.arange(len(query))[:, None]
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, values)


def assert_near(output: torch.Tensor, expected: torch.Tensor) -> None:
    """To the precision of the output's dtype: weights and outputs are rounded to it."""
    bound = 1e-5 if output.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(output.cpu().double(), expected, rtol=bound, atol=bound)
