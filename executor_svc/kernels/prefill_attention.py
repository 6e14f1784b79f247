"""Causal attention of prefill tokens over the paged KV cache, in the manner of FlashAttention-2.

A program takes consecutive positions of one segment with all the query heads of one KV head, so that it reads each key
once for the whole group: first the tiles that every query sees, unmasked, then those on the diagonal. Few tokens behind
a long context are split over the context: of a tile's programs, the one that finishes last puts the shares together.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from executor_svc.kernels.arrivals import arrivals
from executor_svc.kernels.paged_tiles import MIN_DOT, attend_tiles, load_heads

_STARTS = 128  # segments looked at together when a program searches for its own
_MAX_SPLITS = 16
_MIN_SHARE = tl.constexpr(512)  # positions below which a share is not worth a program


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """How the kernel is compiled: queries (positions x group) and keys a tile, and tiles on their way at once."""

    queries: int
    tile: int
    num_warps: int
    num_stages: int


def prefill_config(head_dim: int, dtype: torch.dtype, num_queries: int) -> PrefillConfig:
    """The configuration for `num_queries` = tokens x query heads: small tiles where large ones are too few.

    The keys' tile does not depend on it, so neither do a row's numbers.
    """
    if dtype == torch.float32:
        return PrefillConfig(queries=16, tile=16, num_warps=4, num_stages=2)
    if head_dim > 128:
        return PrefillConfig(queries=64, tile=64, num_warps=8, num_stages=2)
    if num_queries <= 128 * 128:
        return PrefillConfig(queries=64, tile=64, num_warps=4, num_stages=3)
    return PrefillConfig(queries=128, tile=64, num_warps=8, num_stages=3)


def query_tiles_for(num_tokens: int, num_segments: int, group: int, config: PrefillConfig) -> int:
    """The most tiles of queries that `num_tokens` tokens in `num_segments` segments make."""
    return num_tokens // _positions_per_tile(group, config) + num_segments


def prefill_splits_for(
    num_tokens: int, num_heads: int, num_kv_heads: int, config: PrefillConfig, num_sms: int
) -> int:
    """Shares of a context that fill `num_sms` multiprocessors, where the tokens' own tiles do not."""
    positions = _positions_per_tile(num_heads // num_kv_heads, config)
    num_programs = -(-num_tokens // positions) * num_kv_heads
    return max(1, min(_MAX_SPLITS, num_sms // num_programs))


def _positions_per_tile(group: int, config: PrefillConfig) -> int:
    return max(1, config.queries // group)


def prefill_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_tables: torch.Tensor,
    rows: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    max_query_tiles: int | None = None,
    scale: float | None = None,
    *,
    num_splits: int = 1,
    config: PrefillConfig | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of each segment's tokens, whose own keys and values are in the cache already.

    `query` is [num_tokens, num_heads, head_dim], as is what returns, `keys` and `values`
    [num_blocks, block_size, num_kv_heads, head_dim], `block_tables` int32 [num_rows, max_blocks], `rows` int32
    [num_segments], `starts` int32 [num_segments + 1] each segment's first token, `lengths` int32 [num_rows]: token i of
    segment s sees positions 0 to lengths[rows[s]] + i of its row. Tokens of no segment, before the first one or behind
    the last, keep what `out` held. `max_query_tiles` is query_tiles_for(...) where not given, and bounds the
    launch; `scale` is 1 / sqrt(head_dim) where not given. `num_splits` is the most shares of a context: see
    prefill_splits_for, and decode_attention for what calls with several must heed. ValueError for a tensor that is not
    contiguous.
    """
    num_tokens, num_heads, head_dim = query.shape
    _, block_size, num_kv_heads, _ = keys.shape
    for name, tensor in (("query", query), ("keys", keys), ("values", values)):
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous")
    group = num_heads // num_kv_heads
    config = config or prefill_config(head_dim, query.dtype, num_tokens * num_heads)
    out = torch.empty_like(query) if out is None else out
    if max_query_tiles is None:
        max_query_tiles = query_tiles_for(num_tokens, len(rows), group, config)
    if not max_query_tiles:
        return out
    positions = _positions_per_tile(group, config)
    num_counters = max_query_tiles * num_kv_heads if num_splits > 1 else 0
    shares = (num_tokens if num_splits > 1 else 0, num_heads, num_splits)
    _prefill_kernel[(num_kv_heads, max_query_tiles, num_splits)](
        out,
        torch.empty((*shares, head_dim), dtype=torch.float32, device=query.device),
        torch.empty(shares, dtype=torch.float32, device=query.device),
        arrivals("prefill_attention", query.device, num_counters),
        query,
        keys,
        values,
        block_tables,
        rows,
        starts,
        lengths,
        block_tables.stride(0),
        len(rows),
        num_splits,
        (scale or head_dim**-0.5) * math.log2(math.e),
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        POSITIONS=positions,
        M=max(MIN_DOT, triton.next_power_of_2(positions * group)),
        DIM=max(MIN_DOT, triton.next_power_of_2(head_dim)),
        TILE=config.tile,
        STARTS=_STARTS,
        SPLIT=num_splits > 1,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out


@triton.jit(
    do_not_specialize=["table_stride", "num_segments", "num_splits"],
    do_not_specialize_on_alignment=["rows", "starts"],
)
def _prefill_kernel(
    out: tl.tensor,
    partials: tl.tensor,
    weights: tl.tensor,
    arrivals: tl.tensor,
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    block_tables: tl.tensor,
    rows: tl.tensor,
    starts: tl.tensor,
    lengths: tl.tensor,
    table_stride: tl.tensor,
    num_segments: tl.tensor,
    num_splits: tl.tensor,
    scale_log2: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    POSITIONS: tl.constexpr,
    M: tl.constexpr,
    DIM: tl.constexpr,
    TILE: tl.constexpr,
    STARTS: tl.constexpr,
    SPLIT: tl.constexpr,
) -> None:
    kv_head = tl.program_id(0)
    # A segment's last tiles see most: they come first.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    segment = _find_segment(starts, num_segments, tile, POSITIONS, STARTS)
    if segment < 0:
        return
    begin, stop = tl.load(starts + segment), tl.load(starts + segment + 1)
    token = begin + (tile - begin // POSITIONS - segment) * POSITIONS
    if token >= stop:
        return
    row = tl.load(rows + segment)
    first = tl.load(lengths + row) + token - begin
    end = first + tl.minimum(POSITIONS, stop - token)
    # Every query sees the tiles before this position whole: they are shared out, and the last share has the others too.
    diagonal = (first + 1) // TILE * TILE
    split, num_shares = 0, 1
    share = diagonal
    if SPLIT:
        split = tl.program_id(2)
        share = tl.maximum(tl.cdiv(tl.cdiv(diagonal, num_splits), TILE) * TILE, _MIN_SHARE)
        num_shares = tl.maximum(tl.cdiv(diagonal, share), 1)
        if split >= num_shares:
            return

    queries = tl.arange(0, M)
    held = (queries < POSITIONS * GROUP) & (queries // GROUP < stop - token)
    heads = ((token + queries // GROUP) * NUM_KV_HEADS + kv_head) * GROUP + queries % GROUP
    offsets = heads.to(tl.int64) * HEAD_DIM
    grouped = load_heads(query, offsets, held, HEAD_DIM, DIM)
    table = block_tables + row * table_stride
    output = tl.zeros([M, DIM], tl.float32)
    peak = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    whole = tl.minimum((split + 1) * share, diagonal)
    output, peak, total = attend_tiles(
        grouped, first + queries // GROUP, keys, values, table, split * share, whole, kv_head, scale_log2,
        output, peak, total, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, DIM, TILE, False, False,
    )  # fmt: skip
    end = tl.where(split == num_shares - 1, end, diagonal)
    output, peak, total = attend_tiles(
        grouped, first + queries // GROUP, keys, values, table, diagonal, end, kv_head, scale_log2,
        output, peak, total, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, DIM, TILE, True, False,
    )  # fmt: skip
    output = output / total[:, None]
    dims = tl.arange(0, DIM)
    mask = held[:, None] & (dims < HEAD_DIM)[None, :]
    place = offsets[:, None] + dims[None, :]
    if num_shares == 1:
        tl.store(out + place, output.to(out.dtype.element_ty), mask=mask)
    else:
        first_share = heads.to(tl.int64) * num_splits
        tl.store(partials + ((first_share + split)[:, None] * HEAD_DIM + dims[None, :]), output, mask=mask)
        tl.store(weights + first_share + split, peak + tl.log2(total), mask=held)
        # Every thread's stores come before the one thread's release.
        tl.debug_barrier()
        counter = arrivals + tile * NUM_KV_HEADS + kv_head
        arrived = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
        if arrived == num_shares - 1:
            tl.store(counter, 0)
            output = _combine(partials, weights, first_share, num_shares, held, M, HEAD_DIM, DIM)
            tl.store(out + place, output.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _combine(
    partials: tl.tensor,
    weights: tl.tensor,
    first_share: tl.tensor,
    num_shares: tl.tensor,
    held: tl.tensor,
    M: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
) -> tl.tensor:
    """The shares of each query, from its first on, weighed by their log-sum-exps, in their order: [M, DIM]."""
    dims = tl.arange(0, DIM)
    mask = held[:, None] & (dims < HEAD_DIM)[None, :]
    output = tl.zeros([M, DIM], tl.float32)
    peak = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    for share in range(0, num_shares):
        at = first_share + share
        # Other programs wrote these: read them past the first-level cache.
        lse = tl.load(weights + at, mask=held, other=0.0, cache_modifier=".cg")
        part = tl.load(
            partials + (at[:, None] * HEAD_DIM + dims[None, :]), mask=mask, other=0.0, cache_modifier=".cg"
        )
        new_peak = tl.maximum(peak, lse)
        weight, shrink = tl.exp2(lse - new_peak), tl.exp2(peak - new_peak)
        output = output * shrink[:, None] + part * weight[:, None]
        total = total * shrink + weight
        peak = new_peak
    return output / total[:, None]


@triton.jit
def _find_segment(
    starts: tl.tensor,
    num_segments: tl.tensor,
    tile: tl.tensor,
    POSITIONS: tl.constexpr,
    STARTS: tl.constexpr,
) -> tl.tensor:
    """The segment of a tile, where segment s has the tiles from starts[s] // POSITIONS + s on; -1 before the first.

    That leaves room for the tiles of every segment before, each of which has at most one that is not full.
    """
    before = 0
    for first in range(0, num_segments, STARTS):
        segments = first + tl.arange(0, STARTS)
        inside = segments < num_segments
        first_tiles = tl.load(starts + segments, mask=inside, other=0) // POSITIONS + segments
        before += tl.sum((inside & (first_tiles <= tile)).to(tl.int32), 0)
    return before - 1
