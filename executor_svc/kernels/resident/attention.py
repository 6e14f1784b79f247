"""Attention of a resident launch: from the merged projection to one output a head, with the KV write between.

A program takes a KV head and a share of its context, if there is one for it. The token's own key and value are taken
from the projection, by the first share, which also writes them to the cache: so nobody reads there what is written in
the same launch.
"""

import triton
import triton.language as tl

from executor_svc.kernels.decode_attention import keep_share
from executor_svc.kernels.paged_tiles import attend_tiles, cache_offsets, load_block_ids
from executor_svc.kernels.prefetch import prefetch_lines
from executor_svc.kernels.resident.barrier import wait
from executor_svc.kernels.resident.sizes import TILE, dot_side, power_of_two, splits_at_once


@triton.jit
def attend(
    qkv: tl.tensor,
    q_norm: tl.tensor,
    k_norm: tl.tensor,
    eps: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    slot_mapping: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    block_tables: tl.tensor,
    table_stride: tl.tensor,
    rows: tl.tensor,
    lengths: tl.tensor,
    out: tl.tensor,
    partials: tl.tensor,
    weights: tl.tensor,
    arrivals: tl.tensor,
    scale_log2: tl.tensor,
    counter: tl.tensor,
    num_arrivals: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SPLITS: tl.constexpr,
    RESIDENT: tl.constexpr,
) -> None:
    """The share of program kv_head * SPLITS + split; see decode_attention for the tensors.

    Waits for `num_arrivals` before it reads `qkv`, and after all that it can read before.
    """
    M: tl.constexpr = dot_side(GROUP)
    DIM: tl.constexpr = dot_side(HEAD_DIM)
    kv_head, split = tl.program_id(0) // SPLITS, tl.program_id(0) % SPLITS
    row = tl.load(rows)
    slot = tl.load(slot_mapping).to(tl.int64) * NUM_KV_HEADS + kv_head
    length = tl.load(lengths + row)
    share = tl.maximum(tl.cdiv(tl.cdiv(length, SPLITS), TILE), 1) * TILE
    num_shares = tl.maximum(tl.cdiv(length, share), 1)
    begin = split * share
    end = tl.minimum(begin + share, length)
    table = block_tables + row.to(tl.int64) * table_stride
    rotation = _load_halves(cos, sin, HEAD_DIM, DIM)
    q_factors = _load_factors(q_norm, HEAD_DIM, DIM)
    k_factors = _load_factors(k_norm, HEAD_DIM, DIM)
    if RESIDENT:
        if begin < end:
            _prefetch_tile(keys, values, table, begin, end, kv_head, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE)
        wait(counter, num_arrivals)
    if split < num_shares:
        heads = kv_head * GROUP + tl.arange(0, M)
        held = tl.arange(0, M) < GROUP
        query = _rotated(qkv, heads, held, q_factors, eps, rotation, HEAD_DIM, DIM)
        key_head = GROUP * NUM_KV_HEADS + kv_head + tl.zeros([1], tl.int32)
        key = _rotated(qkv, key_head, key_head >= 0, k_factors, eps, rotation, HEAD_DIM, DIM)
        value_at = (key_head + NUM_KV_HEADS) * HEAD_DIM
        dims = tl.arange(0, DIM)[None, :]
        inside = dims < HEAD_DIM
        value = tl.load(qkv + value_at[:, None] + dims, mask=inside, other=0.0, cache_modifier=".cg")
        first_share = split == 0
        tl.store(keys + slot * HEAD_DIM + dims, key, mask=inside & first_share)
        tl.store(values + slot * HEAD_DIM + dims, value, mask=inside & first_share)

        scores = tl.sum(query.to(tl.float32) * key.to(tl.float32), axis=1)
        peak = tl.where(first_share, scores * scale_log2, float("-inf"))
        output = tl.where(first_share, value.to(tl.float32), 0.0) + tl.zeros([M, DIM], tl.float32)
        starts = (tl.arange(0, TILE) == 0) & first_share
        totals = tl.where(starts, 1.0, 0.0)[None, :] + tl.zeros([M, TILE], tl.float32)
        last = tl.zeros([M], tl.int32) + (end - 1)
        output, peak, totals = attend_tiles(
            query, last, keys, values, table, begin, end, kv_head, scale_log2, output, peak, totals,
            NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, DIM, TILE, True, True,
        )  # fmt: skip
        total = tl.sum(totals, 1)
        output = output / total[:, None]
        keep_share(
            output, peak + tl.log2(total), out, partials, weights, arrivals, kv_head, split, SPLITS, num_shares,
            GROUP, HEAD_DIM, M, DIM, power_of_two(GROUP), splits_at_once(SPLITS, GROUP, HEAD_DIM),
        )  # fmt: skip


@triton.jit
def _rotated(
    source: tl.tensor,
    heads: tl.tensor,
    held: tl.tensor,
    factors: tl.tuple,
    eps: tl.tensor,
    rotation: tl.tuple,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
) -> tl.tensor:
    """Normalised, if there is a norm, and rotated heads of one token, rounded as rotary_kv.py does: [heads, DIM]."""
    dims, others = _dims(HEAD_DIM, DIM)
    mask = held[:, None] & (dims < HEAD_DIM)[None, :]
    at = source + heads[:, None] * HEAD_DIM
    x = tl.load(at + dims[None, :], mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
    other = tl.load(at + others[None, :], mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
    if len(factors) > 0:
        dtype: tl.constexpr = source.dtype.element_ty
        scale = tl.math.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / HEAD_DIM + eps)
        x = ((x * scale).to(dtype).to(tl.float32) * factors[0][None, :]).to(dtype).to(tl.float32)
        other = ((other * scale).to(dtype).to(tl.float32) * factors[1][None, :]).to(dtype).to(tl.float32)
    return (x * rotation[0][None, :] + other * rotation[1][None, :]).to(source.dtype.element_ty)


@triton.jit
def _dims(HEAD_DIM: tl.constexpr, DIM: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """A head's elements, and with which each is rotated."""
    dims = tl.arange(0, DIM)
    half: tl.constexpr = HEAD_DIM // 2
    return dims, tl.where(dims < half, dims + half, dims - half)


@triton.jit
def _load_factors(norm_weight: tl.tensor, HEAD_DIM: tl.constexpr, DIM: tl.constexpr) -> tl.tuple:
    """A norm's weights of a head's elements, and of those that each is rotated with; none where there is no norm."""
    factors: tl.tuple = ()
    if norm_weight is not None:
        dims, others = _dims(HEAD_DIM, DIM)
        inside = dims < HEAD_DIM
        factors = (
            tl.load(norm_weight + dims, mask=inside, other=0.0).to(tl.float32),
            tl.load(norm_weight + others, mask=inside, other=0.0).to(tl.float32),
        )
    return factors


@triton.jit
def _load_halves(
    cos: tl.tensor, sin: tl.tensor, HEAD_DIM: tl.constexpr, DIM: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """What a head's elements are multiplied by, and those that they are rotated with."""
    dims = tl.arange(0, DIM)
    half: tl.constexpr = HEAD_DIM // 2
    inside = dims < HEAD_DIM
    sines = tl.load(sin + dims % half, mask=inside, other=0.0)
    return tl.load(cos + dims % half, mask=inside, other=0.0), tl.where(dims < half, -sines, sines)


@triton.jit
def _prefetch_tile(
    keys: tl.tensor,
    values: tl.tensor,
    table: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    kv_head: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
) -> None:
    """Calls keys and values of a share's first positions into the L2 cache."""
    line: tl.constexpr = 1024 // keys.dtype.element_ty.primitive_bitwidth
    positions = tl.minimum(begin + tl.arange(0, TILE), end - 1)
    block_ids = load_block_ids(table, positions, end, BLOCK_SIZE)
    offsets = cache_offsets(block_ids, positions, kv_head, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE)
    for first in tl.static_range(0, HEAD_DIM, line):
        prefetch_lines(keys + offsets + first)
        prefetch_lines(values + offsets + first)
