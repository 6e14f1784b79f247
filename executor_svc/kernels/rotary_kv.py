"""From the merged projection to attention: q/k normalisation, rotary embedding and the write to the KV cache."""

import torch
import triton
import triton.language as tl

from executor_svc.kernels.overlap import await_inputs, launch_options

_HEADS = 8  # a program


def rotate_and_write(
    qkv: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slot_mapping: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    num_heads: int,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns the queries, [n, num_heads, head_dim]; puts keys and values into the cache at `slot_mapping`.

    `qkv` is [n, (num_heads + 2 * num_kv_heads) * head_dim]; `cos` and `sin` float32 [n, head_dim / 2], rotating as
    layers/rotary.py does; `slot_mapping` int64 [n], none twice but those of padding; `keys` and `values` [num_blocks,
    block_size, num_kv_heads, head_dim]. The norm's weights are [head_dim], both None where the model has none.
    """
    num_tokens = len(qkv)
    num_kv_heads, head_dim = keys.shape[2:]
    num_parts = num_heads + 2 * num_kv_heads
    assert (q_weight is None) == (k_weight is None)
    assert qkv.shape[1] == num_parts * head_dim
    assert all(tensor.is_contiguous() for tensor in (qkv, cos, sin, keys, values))
    if out is None:
        out = qkv.new_empty(num_tokens, num_heads, head_dim)
    if num_tokens:
        _rotate_kernel[(num_tokens, triton.cdiv(num_parts, _HEADS))](
            qkv,
            q_weight,
            k_weight,
            eps,
            cos,
            sin,
            slot_mapping,
            keys,
            values,
            out,
            NUM_HEADS=num_heads,
            NUM_KV_HEADS=num_kv_heads,
            HALF=head_dim // 2,
            HEADS=_HEADS,
            BLOCK=triton.next_power_of_2(head_dim // 2),
            num_warps=2,
            **launch_options(qkv.device),
        )
    return out


@triton.jit
def _rotate_kernel(
    qkv: tl.tensor,
    q_weight: tl.tensor,
    k_weight: tl.tensor,
    eps: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    slot_mapping: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    out: tl.tensor,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """One token, HEADS of its heads: queries, then keys, then values, as they lie in `qkv`. Pairs are (i, i + HALF)."""
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    pairs = tl.arange(0, BLOCK)[None, :]
    num_parts: tl.constexpr = NUM_HEADS + 2 * NUM_KV_HEADS
    is_query, is_value = heads < NUM_HEADS, heads >= NUM_HEADS + NUM_KV_HEADS
    inside = (heads < num_parts) & (pairs < HALF)
    await_inputs(OVERLAP)
    source = qkv + token * (num_parts * 2 * HALF) + heads * (2 * HALF) + pairs
    raw_first = tl.load(source, mask=inside, other=0.0)
    raw_second = tl.load(source + HALF, mask=inside, other=0.0)
    first, second = raw_first.to(tl.float32), raw_second.to(tl.float32)
    if q_weight is not None:
        first, second = _normalise(first, second, q_weight, k_weight, eps, is_query, pairs, HALF)
    angle = token * HALF + pairs
    c = tl.load(cos + angle, mask=pairs < HALF, other=0.0)
    s = tl.load(sin + angle, mask=pairs < HALF, other=0.0)
    turned_first = (first * c - second * s).to(out.dtype.element_ty)
    turned_second = (second * c + first * s).to(out.dtype.element_ty)

    query = out + token * (NUM_HEADS * 2 * HALF) + heads * (2 * HALF) + pairs
    tl.store(query, turned_first, mask=inside & is_query)
    tl.store(query + HALF, turned_second, mask=inside & is_query)
    slot = tl.load(slot_mapping + token).to(tl.int64) * (NUM_KV_HEADS * 2 * HALF)
    key = keys + slot + (heads - NUM_HEADS) * (2 * HALF) + pairs
    is_key = inside & (heads >= NUM_HEADS) & (heads < NUM_HEADS + NUM_KV_HEADS)
    tl.store(key, turned_first, mask=is_key)
    tl.store(key + HALF, turned_second, mask=is_key)
    value = values + slot + (heads - NUM_HEADS - NUM_KV_HEADS) * (2 * HALF) + pairs
    tl.store(value, raw_first, mask=inside & is_value)
    tl.store(value + HALF, raw_second, mask=inside & is_value)


@triton.jit
def _normalise(
    first: tl.tensor,
    second: tl.tensor,
    q_weight: tl.tensor,
    k_weight: tl.tensor,
    eps: tl.tensor,
    is_query: tl.tensor,
    pairs: tl.tensor,
    HALF: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """RMSNorm of heads that are held in halves, float32 [heads, BLOCK] each; the result is rounded as the layer's."""
    inside = pairs < HALF
    squares = tl.sum(first * first + second * second, axis=1, keep_dims=True)
    scale = tl.math.rsqrt(squares / (2 * HALF) + eps)
    dtype: tl.constexpr = q_weight.dtype.element_ty
    q_first = tl.load(q_weight + pairs, mask=inside, other=0.0)
    k_first = tl.load(k_weight + pairs, mask=inside, other=0.0)
    q_second = tl.load(q_weight + HALF + pairs, mask=inside, other=0.0)
    k_second = tl.load(k_weight + HALF + pairs, mask=inside, other=0.0)
    weight_first = tl.where(is_query, q_first, k_first).to(tl.float32)
    weight_second = tl.where(is_query, q_second, k_second).to(tl.float32)
    first = (first * scale).to(dtype).to(tl.float32) * weight_first
    second = (second * scale).to(dtype).to(tl.float32) * weight_second
    return first.to(dtype).to(tl.float32), second.to(dtype).to(tl.float32)
