"""The MLP's gate."""

import torch
import triton
import triton.language as tl

from executor_svc.kernels.overlap import await_inputs, launch_options


def silu_and_mul(gate_up: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """silu(gate) * up of contiguous [n, 2 * size], gate first: [n, size]; silu is rounded before the product."""
    num_tokens, both = gate_up.shape
    size = both // 2
    assert gate_up.is_contiguous()
    if out is None:
        out = gate_up.new_empty(num_tokens, size)
    block = min(triton.next_power_of_2(size), 1024)
    if num_tokens:
        _silu_and_mul_kernel[(num_tokens, triton.cdiv(size, block))](
            gate_up,
            out,
            SIZE=size,
            BLOCK=block,
            num_warps=min(max(block // 256, 1), 4),
            **launch_options(gate_up.device),
        )
    return out


@triton.jit
def silu(gate: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """x / (1 + exp(-x)) of float32, rounded to `dtype` and back."""
    return (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)


@triton.jit
def _silu_and_mul_kernel(
    gate_up: tl.tensor, out: tl.tensor, SIZE: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
) -> None:
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < SIZE
    source = gate_up + token * (2 * SIZE) + columns
    await_inputs(OVERLAP)
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(source + SIZE, mask=inside, other=0.0).to(tl.float32)
    dtype: tl.constexpr = out.dtype.element_ty
    tl.store(out + token * SIZE + columns, (silu(gate, dtype) * up).to(dtype), mask=inside)
