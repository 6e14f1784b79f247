"""RMSNorm, with the addition of the residual stream before it."""

import torch
import triton
import triton.language as tl

from executor_svc.kernels.overlap import await_inputs, launch_options


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    *,
    normed: torch.Tensor | None = None,
    summed: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMSNorm of x + residual, and that sum; `x` and `residual` contiguous [n, size].

    Rounds as the layers do one by one: the sum to x's dtype, then the normalised values, then their product with
    `weight` [size]. Without a residual the sum is `x` itself. `normed` and `summed` are where the results go; each
    may be one of the inputs.
    """
    num_tokens, size = x.shape
    assert x.is_contiguous()
    assert residual is None or residual.is_contiguous()
    if normed is None:
        normed = torch.empty_like(x)
    if residual is None:
        summed = x
    elif summed is None:
        summed = torch.empty_like(x)
    block = triton.next_power_of_2(size)
    if num_tokens:
        _add_rms_norm_kernel[(num_tokens,)](
            x,
            residual,
            weight,
            normed,
            summed,
            eps,
            SIZE=size,
            BLOCK=block,
            num_warps=min(max(block // 512, 1), 8),
            **launch_options(x.device),
        )
    return normed, summed


@triton.jit
def _add_rms_norm_kernel(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    normed: tl.tensor,
    summed: tl.tensor,
    eps: tl.tensor,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    at = tl.program_id(0).to(tl.int64) * SIZE + columns
    await_inputs(OVERLAP)
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    add_and_normalise(values, at, inside, columns, residual, weight, normed, summed, eps, SIZE)


@triton.jit
def add_and_normalise(
    values: tl.tensor,
    at: tl.tensor,
    inside: tl.tensor,
    columns: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    normed: tl.tensor,
    summed: tl.tensor,
    eps: tl.tensor,
    SIZE: tl.constexpr,
) -> None:
    """Writes a row's normalised sum of float32 `values` and its residual, and that sum; `at` are its places."""
    if residual is not None:
        values += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        rounded = values.to(summed.dtype.element_ty)
        tl.store(summed + at, rounded, mask=inside)
        values = rounded.to(tl.float32)
    weights = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.math.rsqrt(tl.sum(values * values) / SIZE + eps)
    dtype: tl.constexpr = normed.dtype.element_ty
    tl.store(normed + at, ((values * scale).to(dtype).to(tl.float32) * weights).to(dtype), mask=inside)
