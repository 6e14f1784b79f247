"""The end of a decode step: sampled tokens are written back and rows advance, all in one launch."""

import torch
import triton
import triton.language as tl

_TILE = 256


def record_tokens(
    rows: torch.Tensor,
    positions: torch.Tensor,
    sampled: torch.Tensor,
    token_ids: torch.Tensor,
    lengths: torch.Tensor,
) -> None:
    """token_ids[row, position + 1] = sampled and lengths[row] = position + 1 for each row but the last of all.

    `rows`, `positions` and `sampled` are int32 [n], `token_ids` int32 [num_rows, max_model_len] and `lengths` int32
    [num_rows]. No row comes twice, but for the last of all, the dummy row, which is left as it is.
    """
    num_tokens = len(rows)
    _record_kernel[(triton.cdiv(num_tokens, _TILE),)](
        rows,
        positions,
        sampled,
        token_ids,
        lengths,
        num_tokens,
        len(lengths) - 1,
        token_ids.stride(0),
        TILE=_TILE,
    )


@triton.jit
def _record_kernel(
    rows: tl.tensor,
    positions: tl.tensor,
    sampled: tl.tensor,
    token_ids: tl.tensor,
    lengths: tl.tensor,
    num_tokens: tl.tensor,
    dummy_row: tl.tensor,
    row_stride: tl.tensor,
    TILE: tl.constexpr,
) -> None:
    index = tl.program_id(0) * TILE + tl.arange(0, TILE)
    row = tl.load(rows + index, mask=index < num_tokens, other=dummy_row)
    real = row != dummy_row
    position = tl.load(positions + index, mask=real, other=0) + 1
    token = tl.load(sampled + index, mask=real, other=0)
    tl.store(token_ids + row.to(tl.int64) * row_stride + position, token, mask=real)
    tl.store(lengths + row, position, mask=real)
