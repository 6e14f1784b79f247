"""Linear layers of at most 16 tokens: all that counts is to stream the weight at the memory's speed.

A program takes some columns of the output and all tokens, padded to 16 for the tensor cores. It may normalise its input
itself (the input is small) and apply the MLP's gate, which spares a decode step launches. Where the columns are too few
for the multiprocessors, programs share the sum over the inputs, and the last to finish adds the shares up, always in
the same order. A token's numbers do not depend on how many others there are.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from executor_svc.kernels.activation import silu
from executor_svc.kernels.arrivals import arrivals
from executor_svc.kernels.overlap import await_inputs, launch_options
from executor_svc.kernels.prefetch import prefetch_lines

MAX_TOKENS = 16
_CACHE_LINE_BYTES = 128
_PROGRAMS = 120  # about as many as multiprocessors
_STATISTICS = 1024  # inputs at a time for the norm's mean of squares


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm of the input before the layer, rounded as add_rms_norm does."""

    weight: torch.Tensor
    """[in_features]"""
    eps: float
    residual: torch.Tensor | None = None
    """Added to the input first: [n, in_features]."""
    summed: torch.Tensor | None = None
    """Takes that sum, where there is a residual; neither the input nor the residual, which others still read."""


@dataclass(frozen=True, slots=True)
class LinearConfig:
    """How the kernel is compiled and launched."""

    block_n: int
    """Output columns a program."""
    block_k: int
    """Inputs a tile."""
    split_k: int = 1
    """Programs that share a sum."""
    num_warps: int = 4
    num_stages: int = 4
    """Tiles on their way from memory at once, and one."""
    prefetch: int = 0
    """Inputs whose weights are called into the L2 cache before anything else, while the norm is computed."""


def linear_config(in_features: int, columns: int, gated: bool, dtype: torch.dtype) -> LinearConfig:
    """The configuration for a layer of `columns` outputs (after the gate); it does not depend on the tokens."""
    if dtype == torch.float32:
        return LinearConfig(block_n=16, block_k=64, num_stages=3)
    block_n = 32
    programs = triton.cdiv(columns, block_n)
    split_k = 1
    while not gated and programs * split_k < _PROGRAMS and in_features >= 512 * split_k:
        split_k *= 2
    if in_features > 4096:
        return LinearConfig(block_n, 128, split_k, num_stages=4 if gated else 5, prefetch=512)
    return LinearConfig(block_n, 256, split_k, num_stages=3 if gated else 4, prefetch=1024 if gated else 512)


def small_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    norm: Norm | None = None,
    gated: bool = False,
    out: torch.Tensor | None = None,
    config: LinearConfig | None = None,
) -> torch.Tensor:
    """f(x) W^T + b for contiguous `x` [n, in_features], n <= 16, and `weight` [out_features, in_features].

    f is `norm`'s, if given. The result is [n, out_features], or, `gated`, silu(first half) * second half of that.
    Weights are called in while the kernel before still runs, where the device can overlap the two. Calls that split
    sums share counters: run them on one stream, and once on the device before a CUDA graph is captured.
    """
    num_tokens, in_features = x.shape
    columns = len(weight) // 2 if gated else len(weight)
    assert num_tokens <= MAX_TOKENS
    assert x.is_contiguous()
    assert weight.is_contiguous()
    config = config or linear_config(in_features, columns, gated, x.dtype)
    assert config.split_k == 1 or not gated
    if out is None:
        out = x.new_empty(num_tokens, columns)
    if not num_tokens:
        return out
    num_blocks = triton.cdiv(columns, config.block_n)
    prefetch = min(config.prefetch, triton.next_power_of_2(triton.cdiv(in_features, config.split_k)))
    if prefetch * x.element_size() < _CACHE_LINE_BYTES:
        prefetch = 0
    partials = counters = None
    if config.split_k > 1:
        partials = torch.empty(config.split_k * num_tokens * columns, dtype=torch.float32, device=x.device)
        counters = arrivals("small_linear", x.device, num_blocks)
    residual = norm.residual if norm else None
    assert norm is None or (residual is None) == (norm.summed is None)
    _small_linear_kernel[(num_blocks, config.split_k)](
        x,
        residual,
        norm.weight if norm else None,
        norm.summed if norm else None,
        norm.eps if norm else 0.0,
        weight,
        bias,
        out,
        partials,
        counters,
        num_tokens,
        IN=in_features,
        COLUMNS=columns,
        GATED=gated,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        SPLIT_K=config.split_k,
        ROWS=triton.next_power_of_2(num_tokens),
        STATISTICS=min(_STATISTICS, triton.next_power_of_2(in_features)),
        PREFETCH=prefetch if x.is_cuda else 0,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **launch_options(x.device),
    )
    return out


@triton.jit(do_not_specialize=["num_tokens"])
def _small_linear_kernel(
    x: tl.tensor,
    residual: tl.tensor,
    norm_weight: tl.tensor,
    summed: tl.tensor,
    eps: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    partials: tl.tensor,
    arrivals: tl.tensor,
    num_tokens: tl.tensor,
    IN: tl.constexpr,
    COLUMNS: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    ROWS: tl.constexpr,
    STATISTICS: tl.constexpr,
    PREFETCH: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    block, split = tl.program_id(0), tl.program_id(1)
    share: tl.constexpr = tl.cdiv(tl.cdiv(IN, BLOCK_K), SPLIT_K) * BLOCK_K
    begin = split * share
    end = tl.minimum(begin + share, IN)
    columns = block * BLOCK_N + tl.arange(0, BLOCK_N)
    # Past the last column that one is read again, which needs no mask; it is not stored.
    own = weight + tl.minimum(columns, COLUMNS - 1).to(tl.int64) * IN
    if PREFETCH > 0:
        _prefetch(own, begin, IN, PREFETCH)
        if GATED:
            _prefetch(own + COLUMNS * IN, begin, IN, PREFETCH)
    await_inputs(OVERLAP)

    tokens = tl.arange(0, 16)
    scale = tl.zeros([16], tl.float32)
    if norm_weight is not None:
        writes = (block == 0) & (split == 0)
        scale = _norm_scale(x, residual, summed, writes, num_tokens, eps, IN, ROWS, STATISTICS)

    steps = tl.arange(0, BLOCK_K)
    sums = tl.zeros([BLOCK_N, 16], tl.float32)
    up_sums = tl.zeros([BLOCK_N, 16], tl.float32)
    for k in range(begin, end, BLOCK_K):
        places = k + steps
        held = (tokens < num_tokens)[:, None]
        if IN % BLOCK_K:
            held = held & (places < IN)[None, :]
        at = tokens[:, None] * IN + places[None, :]
        tile = tl.load(x + at, mask=held, other=0.0)
        if norm_weight is not None:
            wide = tile.to(tl.float32)
            if residual is not None:
                wide += tl.load(residual + at, mask=held, other=0.0).to(tl.float32)
                wide = wide.to(tile.dtype).to(tl.float32)
            factors = _load_inputs(norm_weight, places, IN, BLOCK_K).to(tl.float32)
            wide = (wide * scale[:, None]).to(tile.dtype).to(tl.float32) * factors[None, :]
            tile = wide.to(tile.dtype)
        turned = tl.trans(tile)
        matrix = _load_inputs(own[:, None], places[None, :], IN, BLOCK_K)
        sums = tl.dot(matrix, turned, sums, input_precision="ieee")
        if GATED:
            matrix = _load_inputs(own[:, None] + COLUMNS * IN, places[None, :], IN, BLOCK_K)
            up_sums = tl.dot(matrix, turned, up_sums, input_precision="ieee")

    at = tokens[None, :] * COLUMNS + columns[:, None]
    mask = (tokens < num_tokens)[None, :] & (columns < COLUMNS)[:, None]
    finished = True
    if SPLIT_K > 1:
        tl.store(partials + split * num_tokens * COLUMNS + at, sums, mask=mask)
        # Every thread's stores come before the one thread's release.
        tl.debug_barrier()
        arrived = tl.atomic_add(arrivals + block, 1, sem="acq_rel", scope="gpu")
        finished = arrived == SPLIT_K - 1
    if finished:
        if SPLIT_K > 1:
            tl.store(arrivals + block, 0)
            sums = tl.zeros([BLOCK_N, 16], tl.float32)
            for other in range(SPLIT_K):
                shares = partials + other * num_tokens * COLUMNS + at
                sums += tl.load(shares, mask=mask, other=0.0, cache_modifier=".cg")
        _finish(sums, up_sums, bias, out, at, columns, mask, COLUMNS, GATED)


@triton.jit
def _finish(
    sums: tl.tensor,
    up_sums: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    at: tl.tensor,
    columns: tl.tensor,
    mask: tl.tensor,
    COLUMNS: tl.constexpr,
    GATED: tl.constexpr,
) -> None:
    """Adds the bias, applies the gate, rounding as layer and activation do one by one, and stores."""
    dtype: tl.constexpr = out.dtype.element_ty
    if bias is not None:
        inside = columns < COLUMNS
        sums += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)[:, None]
        if GATED:
            up_sums += tl.load(bias + COLUMNS + columns, mask=inside, other=0.0).to(tl.float32)[:, None]
    if GATED:
        gate = silu(sums.to(dtype).to(tl.float32), dtype)
        sums = gate * up_sums.to(dtype).to(tl.float32)
    tl.store(out + at, sums.to(dtype), mask=mask)


@triton.jit
def _norm_scale(
    x: tl.tensor,
    residual: tl.tensor,
    summed: tl.tensor,
    writes: tl.tensor,
    num_tokens: tl.tensor,
    eps: tl.tensor,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
    STATISTICS: tl.constexpr,
) -> tl.tensor:
    """What RMSNorm multiplies each token by: float32 [16]. One program writes the sum with the residual."""
    tokens = tl.arange(0, ROWS)[:, None]
    squares = tl.zeros([ROWS], tl.float32)
    for first in tl.static_range(0, IN, STATISTICS):
        places = first + tl.arange(0, STATISTICS)[None, :]
        held = (tokens < num_tokens) & (places < IN)
        at = tokens * IN + places
        values = tl.load(x + at, mask=held, other=0.0).to(tl.float32)
        if residual is not None:
            values += tl.load(residual + at, mask=held, other=0.0).to(tl.float32)
            rounded = values.to(x.dtype.element_ty)
            tl.store(summed + at, rounded, mask=held & writes)
            values = rounded.to(tl.float32)
        squares += tl.sum(values * values, axis=1)
    scale = tl.math.rsqrt(squares / IN + eps)
    # From [ROWS] to [16].
    same = tl.arange(0, 16)[:, None] == tl.arange(0, ROWS)[None, :]
    return tl.sum(tl.where(same, scale[None, :], 0.0), axis=1)


@triton.jit
def _load_inputs(source: tl.tensor, places: tl.tensor, IN: tl.constexpr, BLOCK_K: tl.constexpr) -> tl.tensor:
    """source[places], 0 from IN on; no mask where tiles never pass IN."""
    if IN % BLOCK_K:
        values = tl.load(source + places, mask=places < IN, other=0.0)
    else:
        values = tl.load(source + places)
    return values


@triton.jit
def _prefetch(rows: tl.tensor, begin: tl.tensor, IN: tl.constexpr, PREFETCH: tl.constexpr) -> None:
    """Calls the first PREFETCH inputs' weights of each row, by lines of 128 bytes, into the L2 cache."""
    line: tl.constexpr = 1024 // rows.dtype.element_ty.primitive_bitwidth
    places = tl.minimum(begin + tl.arange(0, PREFETCH // line) * line, IN - 1)
    prefetch_lines(rows[:, None] + places[None, :])
