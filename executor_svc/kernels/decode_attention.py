"""Attention of decode tokens over the paged KV cache: flash decoding, split over the context, in one kernel.

A program takes one token, one KV head with all the query heads of its group, and one share of the context. Where a
context has several shares, the program that finishes last puts them together, always in the order of the context.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from executor_svc.kernels.arrivals import arrivals
from executor_svc.kernels.overlap import await_inputs, launch_options
from executor_svc.kernels.paged_tiles import MIN_DOT, attend_tiles, load_heads

_SPLIT_TILE = 64  # positions below which a share is not worth a program
_FEWEST_SPLITS = 3  # what two shares win, putting them together costs
_FEW_PROGRAMS, _SOME_PROGRAMS = (
    128,
    512,
)  # one a multiprocessor at most; several, whose shared memory must fit
_WAVES = 2  # programs a multiprocessor, all running at a time: benchmarks/attention.py --sweep


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """How the kernel is compiled: positions a tile, and tiles on their way from memory at once."""

    tile: int
    num_warps: int
    num_stages: int


def decode_config(
    head_dim: int, dtype: torch.dtype, group: int, num_splits: int, num_programs: int
) -> DecodeConfig:
    """The fastest of benchmarks/attention.py --sweep; `num_programs` is rows x KV heads.

    A row's numbers may depend on these arguments alone.
    """
    if dtype == torch.float32:
        return DecodeConfig(tile=16, num_warps=4, num_stages=2)
    if head_dim > 128:
        return DecodeConfig(tile=32, num_warps=4, num_stages=3)
    if num_splits > 1 or group > 2:
        return DecodeConfig(tile=32, num_warps=2, num_stages=3)
    if _FEW_PROGRAMS < num_programs <= _SOME_PROGRAMS:
        return DecodeConfig(tile=32, num_warps=4, num_stages=3)
    return DecodeConfig(tile=64, num_warps=4, num_stages=3)


def num_splits_for(num_rows: int, num_kv_heads: int, max_context: int, num_sms: int) -> int:
    """Shares of a context that fill `num_sms` multiprocessors; contexts are at most `max_context` positions."""
    wanted = _WAVES * num_sms // max(1, num_rows * num_kv_heads)
    if wanted < _FEWEST_SPLITS:
        return 1
    return max(1, min(wanted, -(-max_context // _SPLIT_TILE)))


def decode_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_tables: torch.Tensor,
    rows: torch.Tensor,
    lengths: torch.Tensor,
    num_splits: int,
    scale: float | None = None,
    *,
    config: DecodeConfig | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of one token a row, whose own key and value are in the cache already: [n, num_heads, head_dim].

    `query` is [n, num_heads, head_dim], `keys` and `values` [num_blocks, block_size, num_kv_heads, head_dim],
    `block_tables` int32 [num_rows, max_blocks], `rows` int32 [n], `lengths` int32 [num_rows]: token i sees the first
    lengths[rows[i]] + 1 positions of row rows[i]. `scale` is 1 / sqrt(head_dim) where not given. A row's numbers
    depend on its own context, on `num_splits` and on decode_config(...), not on what other rows hold. Calls with
    several splits share counters: run them on one stream, and any once on the device before a CUDA graph is captured.
    ValueError for a tensor that is not contiguous.
    """
    num_tokens, num_heads, head_dim = query.shape
    _, block_size, num_kv_heads, _ = keys.shape
    for name, tensor in (("query", query), ("keys", keys), ("values", values)):
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous")
    group = num_heads // num_kv_heads
    config = config or decode_config(head_dim, query.dtype, group, num_splits, num_tokens * num_kv_heads)
    out = torch.empty_like(query) if out is None else out
    if not num_tokens:
        return out
    partials, weights, counters = _scratch(query, num_kv_heads, num_splits)
    dim = max(MIN_DOT, triton.next_power_of_2(head_dim))
    heads = triton.next_power_of_2(group)
    _decode_kernel[(num_kv_heads, num_splits, num_tokens)](
        out,
        partials,
        weights,
        counters,
        query,
        keys,
        values,
        block_tables,
        rows,
        lengths,
        block_tables.stride(0),
        num_splits,
        (scale or head_dim**-0.5) * math.log2(math.e),
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        M=max(MIN_DOT, heads),
        DIM=dim,
        TILE=config.tile,
        HEADS=heads,
        SPLITS=max(1, 8192 // (heads * dim)),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **launch_options(query.device),
    )
    return out


def _scratch(
    query: torch.Tensor, num_kv_heads: int, num_splits: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each split's output and log-sum-exp, float32 [n, num_kv_heads, num_splits, group(, head_dim)], and counters."""
    num_tokens, num_heads, head_dim = query.shape
    # A single split touches none of it.
    shape = (num_tokens if num_splits > 1 else 0, num_kv_heads, num_splits, num_heads // num_kv_heads)
    partials = torch.empty((*shape, head_dim), dtype=torch.float32, device=query.device)
    weights = torch.empty(shape, dtype=torch.float32, device=query.device)
    num_counters = num_tokens * num_kv_heads if num_splits > 1 else 0
    return partials, weights, arrivals("decode_attention", query.device, num_counters)


@triton.jit(do_not_specialize=["table_stride", "num_splits"], do_not_specialize_on_alignment=["rows"])
def _decode_kernel(
    out: tl.tensor,
    partials: tl.tensor,
    weights: tl.tensor,
    arrivals: tl.tensor,
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    block_tables: tl.tensor,
    rows: tl.tensor,
    lengths: tl.tensor,
    table_stride: tl.tensor,
    num_splits: tl.tensor,
    scale_log2: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    M: tl.constexpr,
    DIM: tl.constexpr,
    TILE: tl.constexpr,
    HEADS: tl.constexpr,
    SPLITS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    kv_head, split, token = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    await_inputs(OVERLAP)
    row = tl.load(rows + token)
    context = tl.load(lengths + row) + 1
    share = tl.cdiv(tl.cdiv(context, num_splits), TILE) * TILE
    first = split * share
    if first >= context:
        return
    end = tl.minimum(first + share, context)

    heads = tl.arange(0, M)
    pair = token * NUM_KV_HEADS + kv_head
    grouped = load_heads(query, (pair * GROUP + heads) * HEAD_DIM, heads < GROUP, HEAD_DIM, DIM)
    last = tl.zeros([M], tl.int32) + (end - 1)
    output = tl.zeros([M, DIM], tl.float32)
    peak = tl.full([M], float("-inf"), tl.float32)
    # Summed over the places of a tile at the end only: the threads of different warps hold them.
    totals = tl.zeros([M, TILE], tl.float32)
    output, peak, totals = attend_tiles(
        grouped, last, keys, values, block_tables + row * table_stride, first, end, kv_head, scale_log2,
        output, peak, totals, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, DIM, TILE, True, True,
    )  # fmt: skip
    total = tl.sum(totals, 1)
    output = output / total[:, None]

    keep_share(
        output, peak + tl.log2(total), out, partials, weights, arrivals, pair, split, num_splits,
        tl.cdiv(context, share), GROUP, HEAD_DIM, M, DIM, HEADS, SPLITS,
    )  # fmt: skip


@triton.jit
def keep_share(
    output: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    partials: tl.tensor,
    weights: tl.tensor,
    arrivals: tl.tensor,
    pair: tl.tensor,
    split: tl.tensor,
    num_splits: tl.tensor,
    num_shares: tl.tensor,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    M: tl.constexpr,
    DIM: tl.constexpr,
    HEADS: tl.constexpr,
    SPLITS: tl.constexpr,
) -> None:
    """Stores a share's output [M, DIM], of log-sum-exps `weight`: as the result, or for the last of several to join."""
    heads, dims = tl.arange(0, M), tl.arange(0, DIM)
    mask = (heads < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    if num_shares == 1:
        place = (pair * GROUP + heads)[:, None] * HEAD_DIM + dims[None, :]
        tl.store(out + place, output.to(out.dtype.element_ty), mask=mask)
    else:
        first_head = (pair.to(tl.int64) * num_splits + split) * GROUP
        tl.store(
            partials + first_head * HEAD_DIM + (heads[:, None] * HEAD_DIM + dims[None, :]), output, mask=mask
        )
        tl.store(weights + first_head + heads, weight, mask=heads < GROUP)
        # Every thread's stores come before the one thread's release.
        tl.debug_barrier()
        arrived = tl.atomic_add(arrivals + pair, 1, sem="acq_rel", scope="gpu")
        if arrived == num_shares - 1:
            tl.store(arrivals + pair, 0)
            _combine(
                out, partials, weights, pair, num_splits, num_shares, GROUP, HEAD_DIM, DIM, HEADS, SPLITS
            )


@triton.jit
def _combine(
    out: tl.tensor,
    partials: tl.tensor,
    weights: tl.tensor,
    pair: tl.tensor,
    num_splits: tl.tensor,
    num_shares: tl.tensor,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    HEADS: tl.constexpr,
    SPLITS: tl.constexpr,
) -> None:
    """Weighs the shares of one token and KV head by their log-sum-exps, SPLITS at a time, and stores the sum."""
    heads, dims = tl.arange(0, HEADS), tl.arange(0, DIM)
    output = tl.zeros([HEADS, DIM], tl.float32)
    peak = tl.full([HEADS], float("-inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    head_mask, dim_mask = heads < GROUP, dims < HEAD_DIM
    mask = head_mask[:, None] & dim_mask[None, :]
    weights += pair.to(tl.int64) * num_splits * GROUP
    partials += pair.to(tl.int64) * num_splits * GROUP * HEAD_DIM
    for first in range(0, num_shares, SPLITS):
        splits = first + tl.arange(0, SPLITS)
        held = splits < num_shares
        places = splits[:, None] * GROUP + heads[None, :]
        # Other programs wrote these: read them past the first-level cache.
        lse = tl.load(
            weights + places,
            mask=held[:, None] & head_mask[None, :],
            other=float("-inf"),
            cache_modifier=".cg",
        )
        part = tl.load(
            partials + (places[:, :, None] * HEAD_DIM + dims[None, None, :]),
            mask=held[:, None, None] & mask[None, :, :],
            other=0.0,
            cache_modifier=".cg",
        )
        # Heads that only pad the group have no finite peak.
        new_peak = tl.where(head_mask, tl.maximum(peak, tl.max(lse, 0)), 0.0)
        weight = tl.exp2(lse - new_peak[None, :])
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(weight, 0)
        output = output * shrink[:, None] + tl.sum(part * weight[:, :, None], 0)
        peak = new_peak
    place = (pair * GROUP + heads)[:, None] * HEAD_DIM + dims[None, :]
    output = output / tl.where(head_mask, total, 1.0)[:, None]
    tl.store(out + place, output.to(out.dtype.element_ty), mask=mask)
