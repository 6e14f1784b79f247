"""The ragged batch of one forward pass: packed on the host into one array, read on the device as views of one tensor.

Order of tokens: one a decode row, then those of the prefills. A batch may be larger than what is computed, so that its
tensors may be those of a CUDA graph. The rest is padding: tokens of the dummy row behind all others, decode rows that
are the dummy row, and prefills without tokens. Padding among the decode rows takes up no tokens: the prefills begin
behind the last real one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from executor_svc.plan import Prefill
from nanoserve.arrays import Int32Array


@dataclass(frozen=True, slots=True)
class BatchShape:
    """Sizes of a batch, padding included: how much of each kind it may have."""

    num_tokens: int
    """Tokens computed, of both kinds."""
    num_decodes: int
    """At most num_tokens."""
    num_prefills: int

    @property
    def num_segments(self) -> int:
        """Runs of consecutive positions of one row: decode tokens and prefills."""
        return self.num_decodes + self.num_prefills

    def sizes(self) -> tuple[int, ...]:
        """Lengths of the parts of the packed array, in the order of the fields of ForwardBatch."""
        return (
            self.num_segments,
            self.num_segments,
            self.num_prefills + 1,
            self.num_tokens,
            self.num_tokens,
        )

    @staticmethod
    def of(decode_rows: Int32Array, prefills: Sequence[Prefill]) -> "BatchShape":
        """The sizes without padding."""
        num_tokens = len(decode_rows) + sum(run.num_tokens for run in prefills)
        return BatchShape(num_tokens, len(decode_rows), len(prefills))


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """What a forward pass reads of its batch, on the device: int32."""

    shape: BatchShape
    segment_rows: torch.Tensor
    """[num_segments]: the decode rows, then the rows of the prefills."""
    segment_counts: torch.Tensor
    """[num_segments]: tokens of each, of padding 0."""
    prefill_starts: torch.Tensor
    """[num_prefills + 1]: see AttentionContext."""
    token_rows: torch.Tensor
    """[num_tokens]."""
    token_offsets: torch.Tensor
    """[num_tokens]: how far behind its row's computed positions each token is."""

    @property
    def decode_rows(self) -> torch.Tensor:
        """[num_decodes]."""
        return self.segment_rows[: self.shape.num_decodes]

    @property
    def prefill_rows(self) -> torch.Tensor:
        """[num_prefills]."""
        return self.segment_rows[self.shape.num_decodes :]

    @staticmethod
    def of(shape: BatchShape, packed: torch.Tensor) -> "ForwardBatch":
        """Views of what `pack_batch` made, uploaded."""
        return ForwardBatch(shape, *packed.split(shape.sizes()))


def pack_batch(
    shape: BatchShape, decode_rows: Int32Array, prefills: Sequence[Prefill], dummy_row: int
) -> Int32Array:
    """Packs a batch that fits into `shape`; what is left over is padding."""
    packed = np.zeros(sum(shape.sizes()), np.int32)
    segment_rows, segment_counts, starts, token_rows, token_offsets = np.split(
        packed, np.cumsum(shape.sizes())[:-1]
    )
    num_decodes, first_prefill = len(decode_rows), shape.num_decodes
    end = num_decodes
    segment_rows.fill(dummy_row)
    token_rows.fill(dummy_row)
    segment_rows[:num_decodes] = token_rows[:num_decodes] = decode_rows
    segment_counts[:num_decodes] = 1
    starts[0] = end
    for index, run in enumerate(prefills):
        segment_rows[first_prefill + index] = run.row
        segment_counts[first_prefill + index] = run.num_tokens
        tokens = slice(end, end + run.num_tokens)
        token_rows[tokens] = run.row
        token_offsets[tokens] = np.arange(run.num_tokens, dtype=np.int32)
        end += run.num_tokens
        starts[index + 1] = end
    starts[len(prefills) + 1 :] = end
    return packed
