"""Attention of the CPU: what a sequence holds is gathered from its blocks, and torch's own kernel attends to it.

As in the reference rows of like length are computed together, each over its own length. What all layers of a pass have
in common is worked out once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch.nn import functional

from executor_svc.attention.base import AttentionContext
from executor_svc.attention.reference import rows_of_like_length
from executor_svc.kv_cache import KVCache
from nanoserve.arrays import Int32Array

# Bound of the scratch memory of a prefill: pairs of a query and a position, 5 bytes each.
_MAX_PAIRS = 2**24


@dataclass(frozen=True, slots=True)
class _Group:
    """Tokens that attend together: those of decode rows of like length, or some of one prefill."""

    tokens: slice | torch.Tensor
    """Which of the pass's tokens: num_rows * num_queries."""
    slots: torch.Tensor
    """int64 [num_rows, length]: where the cache holds each position."""
    held: torch.Tensor | None = None
    """Of decode rows: which positions each sees, bool [num_rows, length]."""
    first_position: int = 0
    """Of a prefill: that of its first token here. Each token sees its own position and those before."""

    def visible(self, num_queries: int) -> torch.Tensor | None:
        """bool, which broadcasts to [num_rows, num_heads, num_queries, length]; None: query i sees positions 0 to i."""
        if self.held is not None:
            return self.held[:, None, None]
        if not self.first_position:
            return None
        positions = torch.arange(self.first_position, self.first_position + num_queries)
        return torch.arange(self.slots.shape[1]) <= positions[:, None]


class SdpaAttention:
    """See AttentionBackend; on the CPU alone."""

    def __init__(self, kv_cache: KVCache) -> None:
        self.kv_cache = kv_cache
        self._context: AttentionContext | None = None
        self._groups: list[_Group] = []
        """Of that context."""

    def attend(self, layer: int, query: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        if context is not self._context:
            self._context, self._groups = context, list(self._grouped(context))
        keys, values = self.kv_cache.keys[layer], self.kv_cache.values[layer]
        # Zeros, as what padding holds is written to block 0 by the next layer, and that block stays finite.
        output = torch.zeros_like(query)
        for group in self._groups:
            queries = query[group.tokens].view(len(group.slots), -1, *query.shape[1:])
            visible = group.visible(queries.shape[1])
            found = functional.scaled_dot_product_attention(
                queries.transpose(1, 2),
                _gather(keys, group.slots).transpose(1, 2),
                _gather(values, group.slots).transpose(1, 2),
                attn_mask=visible,
                is_causal=visible is None,
                enable_gqa=True,
            )
            output[group.tokens] = found.transpose(1, 2).flatten(0, 1)
        return output

    def _grouped(self, context: AttentionContext) -> Iterator[_Group]:
        if context.num_decodes:
            yield from self._decodes(context)
        starts = context.prefill_starts.tolist()
        lengths = context.lengths[context.prefill_rows].tolist()
        for index, (begin, end) in enumerate(pairwise(starts)):
            if begin < end:
                table = context.block_tables[context.prefill_rows[index]]
                yield from self._prefill(begin, end - begin, lengths[index], table)

    def _decodes(self, context: AttentionContext) -> Iterator[_Group]:
        """One token a row, rows of like length together."""
        tables = context.block_tables[context.decode_rows]
        lens: Int32Array = context.lengths[context.decode_rows].numpy() + np.int32(1)
        for width, chosen in rows_of_like_length(lens, self.kv_cache.block_size, tables.shape[1]):
            tokens: slice | torch.Tensor = torch.tensor(chosen)
            if len(chosen) == len(lens):
                tokens = slice(0, len(lens))  # spares copies
            slots, held = self._slots(tables[tokens, :width], torch.tensor(lens[chosen]))
            yield _Group(tokens, slots, held)

    def _prefill(
        self, first_token: int, num_tokens: int, first_position: int, block_table: torch.Tensor
    ) -> Iterator[_Group]:
        """Each token sees its own and all earlier positions."""
        context_len = first_position + num_tokens
        num_blocks = -(-context_len // self.kv_cache.block_size)
        slots, _ = self._slots(block_table[None, :num_blocks], torch.tensor([context_len]))
        if not first_position:
            yield _Group(slice(first_token, first_token + num_tokens), slots[:, :num_tokens])
            return
        num_queries = max(1, _MAX_PAIRS // slots.shape[1])
        for begin in range(0, num_tokens, num_queries):
            end = min(begin + num_queries, num_tokens)
            tokens = slice(first_token + begin, first_token + end)
            yield _Group(tokens, slots, first_position=first_position + begin)

    def _slots(
        self, block_tables: torch.Tensor, context_lens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The slots of [num_rows, width] blocks, int64 [num_rows, width * block_size], and which of them are held.

        Those past a row's context may hold NaN, which a weight of 0 does not silence: in their place is its first slot.
        """
        offsets = torch.arange(self.kv_cache.block_size)
        slots = (block_tables.long()[:, :, None] * self.kv_cache.block_size + offsets).flatten(1)
        held = torch.arange(slots.shape[1]) < context_lens[:, None]
        return torch.where(held, slots, slots[:, :1]), held


def _gather(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """[num_rows, length] slots of a layer's keys or values: [num_rows, length, num_kv_heads, head_dim]."""
    return cache.flatten(0, 1).index_select(0, slots.flatten()).view(*slots.shape, *cache.shape[2:])
