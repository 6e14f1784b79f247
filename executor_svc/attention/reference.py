"""Attention in plain PyTorch: the readable reference, on any device.

Scores, softmax and sums are float32. Every row is computed over its own length, rounded up to a power of two of blocks,
and never over the length of others in the batch: so its numbers do not change with the company it keeps, and one long
row does not make all short ones as dear.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from executor_svc.attention.base import AttentionContext
from executor_svc.kv_cache import KVCache
from nanoserve.arrays import Int32Array

# Bounds of the scratch memory: cached tokens gathered at once, and scores computed at once.
_MAX_GATHERED_TOKENS = 65536
_MAX_SCORES = 2**25


class ReferenceAttention:
    """Gathers each sequence's blocks and attends to them; see AttentionBackend. Reads lengths back to the host."""

    def __init__(self, kv_cache: KVCache) -> None:
        self.kv_cache = kv_cache

    def attend(self, layer: int, query: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        # Zeros, as what padding holds is written to block 0 by the next layer, and that block stays finite.
        output = torch.zeros_like(query)
        num_decodes = context.num_decodes
        if num_decodes:
            output[:num_decodes] = self._decode(layer, query[:num_decodes], context)
        starts = context.prefill_starts.tolist()
        lengths = context.lengths[context.prefill_rows].tolist()
        for index, length in enumerate(lengths):
            tokens = slice(starts[index], starts[index + 1])
            if tokens.start < tokens.stop:
                table = context.block_tables[context.prefill_rows[index]]
                output[tokens] = self._prefill(layer, query[tokens], table, length)
        return output

    def _prefill(
        self, layer: int, query: torch.Tensor, block_table: torch.Tensor, first_position: int
    ) -> torch.Tensor:
        """Attends from [num_tokens, num_heads, head_dim], each to its own and all earlier positions."""
        num_tokens = len(query)
        context_len = first_position + num_tokens
        num_blocks = -(-context_len // self.kv_cache.block_size)
        keys, values = self._gather(layer, block_table[None, :num_blocks])
        output = torch.empty_like(query)
        length = keys.shape[1]
        num_queries = max(1, _MAX_SCORES // (query.shape[1] * length))
        columns = torch.arange(length, device=query.device)
        held = (columns < context_len)[None]
        for begin in range(0, num_tokens, num_queries):
            part = query[begin : begin + num_queries]
            positions = torch.arange(len(part), device=query.device) + (first_position + begin)
            visible = columns[None, None] <= positions[None, :, None]
            output[begin : begin + num_queries] = attend(part[None], keys, values, visible, held)[0]
        return output

    def _decode(self, layer: int, query: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        """Attends from [num_decodes, num_heads, head_dim], one token a row, rows of like length together."""
        output = torch.empty_like(query)
        lens: Int32Array = context.lengths[context.decode_rows].cpu().numpy() + np.int32(1)
        tables = context.block_tables[context.decode_rows]
        for width, chosen in rows_of_like_length(lens, self.kv_cache.block_size, tables.shape[1]):
            rows = torch.tensor(chosen, device=query.device)
            keys, values = self._gather(layer, tables[rows, :width])
            row_lens = torch.tensor(lens[chosen], device=query.device)
            held = torch.arange(keys.shape[1], device=query.device) < row_lens[:, None]
            output[rows] = attend(query[rows, None], keys, values, held[:, None], held)[:, 0]
        return output

    def _gather(self, layer: int, block_tables: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of [num_rows, width] blocks, each [num_rows, width * block_size, num_kv_heads, head_dim]."""
        keys = self.kv_cache.keys[layer][block_tables].flatten(1, 2)
        values = self.kv_cache.values[layer][block_tables].flatten(1, 2)
        return keys, values


def rows_of_like_length(
    context_lens: Int32Array, block_size: int, max_blocks: int
) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Indices of contexts that are computed together, and the blocks that each of them takes, padded."""
    widths = padded_num_blocks(context_lens, block_size, max_blocks)
    for width in np.unique(widths).tolist():
        alike = np.flatnonzero(widths == width)
        num_rows = max(1, _MAX_GATHERED_TOKENS // (width * block_size))
        for begin in range(0, len(alike), num_rows):
            yield width, alike[begin : begin + num_rows]


def padded_num_blocks(context_lens: Int32Array, block_size: int, max_blocks: int) -> Int32Array:
    """The blocks that each context fills, rounded up to a power of two, at most `max_blocks`."""
    needed = -(-context_lens // block_size)
    padded = 2 ** np.ceil(np.log2(needed)).astype(np.int32)
    return np.minimum(padded, max_blocks).astype(np.int32)


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, visible: torch.Tensor, held: torch.Tensor
) -> torch.Tensor:
    """Softmax attention with grouped heads: query head h reads KV head h // (num_heads / num_kv_heads).

    `query` is [rows, queries, num_heads, head_dim], `keys` and `values` [rows, length, num_kv_heads, head_dim],
    `visible` bool [rows, queries, length], `held` bool [rows, length]: which positions hold something at all.
    Returns the shape and dtype of `query`.
    """
    num_rows, num_queries, _, head_dim = query.shape
    length, num_kv_heads = keys.shape[1:3]
    grouped = query.float().reshape(num_rows, num_queries, num_kv_heads, -1, head_dim)
    # The queries of all the heads that share a KV head: [rows, num_kv_heads, group * queries, head_dim].
    folded = grouped.permute(0, 2, 3, 1, 4).flatten(2, 3)
    scores = folded @ keys.float().permute(0, 2, 3, 1) / math.sqrt(head_dim)
    scores = scores.view(num_rows, num_kv_heads, -1, num_queries, length)
    weights = scores.masked_fill(~visible[:, None, None], -torch.inf).softmax(dim=-1).flatten(2, 3)
    # A weight of 0 does not silence a NaN: what is not held must not be there at all.
    held_values = torch.where(held[:, :, None, None], values.float(), 0.0).permute(0, 2, 1, 3)
    output = (weights @ held_values).view(num_rows, num_kv_heads, -1, num_queries, head_dim)
    return output.permute(0, 3, 1, 2, 4).reshape(query.shape).to(query.dtype)
