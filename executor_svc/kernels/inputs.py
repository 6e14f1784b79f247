"""The ends of a step on the device-resident batch: what its tokens are, and what was sampled written back."""

import torch
import triton
import triton.language as tl

_BLOCK = 128


def gather_inputs(
    token_rows: torch.Tensor,
    token_offsets: torch.Tensor,
    lengths: torch.Tensor,
    token_ids: torch.Tensor,
    block_tables: torch.Tensor,
    block_size: int,
    *,
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids (int32), positions (int32) and slots (int64) of a step's tokens, each [n].

    Token i is of row token_rows[i], at position lengths[row] + token_offsets[i] (int32 [n], [num_rows], [n]);
    `token_ids` is int32 [num_rows, max_model_len], `block_tables` int32 [num_rows, max_blocks].
    """
    num_tokens = len(token_rows)
    if out is None:
        ids, positions = torch.empty_like(token_rows), torch.empty_like(token_rows)
        out = ids, positions, torch.empty_like(token_rows, dtype=torch.int64)
    if num_tokens:
        _gather_inputs_kernel[(triton.cdiv(num_tokens, _BLOCK),)](
            token_rows,
            token_offsets,
            lengths,
            token_ids,
            block_tables,
            *out,
            num_tokens,
            token_ids.stride(0),
            block_tables.stride(0),
            BLOCK_SIZE=block_size,
            BLOCK=_BLOCK,
            num_warps=1,
        )
    return out


def advance_rows(
    rows: torch.Tensor,
    sampled: torch.Tensor,
    lengths: torch.Tensor,
    token_ids: torch.Tensor,
    *,
    starts: torch.Tensor | None = None,
    samples: torch.Tensor | None = None,
) -> None:
    """Counts the computed positions of a step's segments and writes each sampled token at its row's new length.

    Segment i is of row rows[i] (int32 [n]; none twice but the dummy row, which is the last and stays as it is). It
    computed one position, or starts[i + 1] - starts[i] of them (int32 [n + 1]). sampled[i] (int32 [n]) is its token,
    except where samples[i] (bool or uint8 [n]) is zero; without `samples` every segment has one. `lengths` is int32
    [num_rows], `token_ids` int32 [num_rows, max_model_len].
    """
    num_rows, max_model_len = token_ids.shape
    if len(rows):
        _advance_rows_kernel[(triton.cdiv(len(rows), _BLOCK),)](
            rows,
            sampled,
            lengths,
            token_ids,
            starts,
            samples,
            len(rows),
            num_rows - 1,
            max_model_len,
            token_ids.stride(0),
            BLOCK=_BLOCK,
            num_warps=1,
        )


@triton.jit(do_not_specialize=["num_tokens"], do_not_specialize_on_alignment=["token_rows", "token_offsets"])
def _gather_inputs_kernel(
    token_rows: tl.tensor,
    token_offsets: tl.tensor,
    lengths: tl.tensor,
    token_ids: tl.tensor,
    block_tables: tl.tensor,
    out_ids: tl.tensor,
    out_positions: tl.tensor,
    out_slots: tl.tensor,
    num_tokens: tl.tensor,
    token_stride: tl.tensor,
    table_stride: tl.tensor,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_tokens
    rows = tl.load(token_rows + index, mask=inside, other=0).to(tl.int64)
    offsets = tl.load(token_offsets + index, mask=inside, other=0)
    positions = tl.load(lengths + rows, mask=inside, other=0) + offsets
    ids = tl.load(token_ids + rows * token_stride + positions, mask=inside, other=0)
    blocks = tl.load(block_tables + rows * table_stride + positions // BLOCK_SIZE, mask=inside, other=0)
    tl.store(out_ids + index, ids, mask=inside)
    tl.store(out_positions + index, positions, mask=inside)
    slots = blocks.to(tl.int64) * BLOCK_SIZE + positions % BLOCK_SIZE
    tl.store(out_slots + index, slots, mask=inside)


@triton.jit(do_not_specialize=["num_segments", "dummy_row"])
def _advance_rows_kernel(
    rows: tl.tensor,
    sampled: tl.tensor,
    lengths: tl.tensor,
    token_ids: tl.tensor,
    starts: tl.tensor,
    samples: tl.tensor,
    num_segments: tl.tensor,
    dummy_row: tl.tensor,
    max_model_len: tl.tensor,
    token_stride: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_segments
    row = tl.load(rows + index, mask=inside, other=0).to(tl.int64)
    inside = inside & (row != dummy_row)
    length = tl.load(lengths + row, mask=inside, other=0)
    if starts is None:
        length += 1
    else:
        begin = tl.load(starts + index, mask=inside, other=0)
        length += tl.load(starts + index + 1, mask=inside, other=0) - begin
    tl.store(lengths + row, length, mask=inside)
    # A row may compute its very last position: there is no place for another token then.
    written = inside & (length < max_model_len)
    if samples is not None:
        written = written & (tl.load(samples + index, mask=inside, other=0) != 0)
    tokens = tl.load(sampled + index, mask=inside, other=0)
    tl.store(token_ids + row * token_stride + length, tokens, mask=written)
