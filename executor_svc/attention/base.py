"""What a model asks of attention, and what an attention backend is told of the batch."""

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True)
class AttentionContext:
    """The ragged batch of one forward pass: one token a decode row, then the tokens of the prefills, in order.

    All tensors are on the device and may be changed between two replays of a CUDA graph; the numbers may not. Outside
    of a graph each pass has a context of its own, whose tensors stay as they are until it ends.
    """

    slot_mapping: torch.Tensor
    """int64 [num_tokens]: where the KV cache takes each token's key and value."""
    block_tables: torch.Tensor
    """int32 [num_rows, max_blocks]: of every row; entries past a row's blocks are any valid block."""
    lengths: torch.Tensor
    """int32 [num_rows]: positions of each row computed before this pass."""
    decode_rows: torch.Tensor
    """int32 [num_decodes]: the row of each decode token; it sees its row's length and itself.

    Rows of padding, behind the others, may stand where the first prefills have their tokens: those are the prefills'.
    """
    prefill_rows: torch.Tensor
    """int32 [num_prefills]."""
    prefill_starts: torch.Tensor
    """int32 [num_prefills + 1]: each prefill's first token, then the last one's end."""

    @property
    def num_decodes(self) -> int:
        """How many of the tokens, from the first on, may be decode tokens."""
        return len(self.decode_rows)


class AttentionBackend(Protocol):
    """Attention of one model over its KV cache, which holds this pass's keys and values of the layer already."""

    def attend(self, layer: int, query: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        """Attends from `query`, [num_tokens, num_heads, head_dim], to the positions up to each token's own.

        Returns the shape and dtype of `query`. Scores are scaled by 1 / sqrt(head_dim). What the cache holds at
        positions past a sequence's context, NaN included, has no effect. Tokens past the last prefill are padding:
        theirs is any value.
        """
