"""What a model asks of attention, and what an attention backend is told of the batch."""

from dataclasses import dataclass
from typing import Protocol

import torch

from nanoserve.arrays import Int32Array


@dataclass(frozen=True, slots=True)
class PrefillSpan:
    """Consecutive tokens of one sequence within the batch."""

    first_token: int
    """Index of the span's first token in the batch."""
    num_tokens: int
    context_len: int
    """Positions that the span's last token sees, its own included."""
    block_table: torch.Tensor
    """int32 [at least ceil(context_len / block_size)]; the sequence's blocks in order."""


@dataclass(frozen=True, slots=True)
class AttentionContext:
    """The ragged batch of one forward pass: the tokens of all prefills, in order, then one token a decode row."""

    slot_mapping: torch.Tensor
    """int64 [num_tokens]: where the KV cache takes each token's key and value."""
    prefills: tuple[PrefillSpan, ...]
    decode_block_tables: torch.Tensor
    """int32 [num_decode_rows, max_blocks_per_row]; entries past a row's blocks are any valid block."""
    decode_context_lens: Int32Array
    """[num_decode_rows], on the host: positions that each row's token sees, its own included."""


class AttentionBackend(Protocol):
    """Attention of one model over its KV cache."""

    def forward(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        context: AttentionContext,
    ) -> torch.Tensor:
        """Writes the batch's keys and values to the cache, then attends: all writes come before any read.

        `query` is [num_tokens, num_heads, head_dim], as is what returns; `key` and `value` are
        [num_tokens, num_kv_heads, head_dim]. Scores are scaled by 1 / sqrt(head_dim). What the cache holds at
        positions past a sequence's context, NaN included, has no effect.
        """
