"""A linear layer of a resident launch, with the norm before and what follows it.

Columns go round the programs in units, each with its whole sum: no program waits for another's share. A program's
weights are on their way to its registers before it waits for its inputs.
"""

import triton
import triton.language as tl

from executor_svc.kernels.activation import silu
from executor_svc.kernels.resident.barrier import wait
from executor_svc.kernels.resident.sizes import SLICES, UNIT, WIDTH, power_of_two, quotient, units_at_once
from executor_svc.kernels.resident.sums import sums_of_parts
from executor_svc.kernels.resident.tiles import load_factors, load_tiles, prefetch


@triton.jit
def linear(
    source: tl.tensor,
    norm_weight: tl.tensor,
    eps: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    next_weight: tl.tensor,
    counter: tl.tensor,
    num_arrivals: tl.tensor,
    IN: tl.constexpr,
    COLUMNS: tl.constexpr,
    GATED: tl.constexpr,
    ADDS: tl.constexpr,
    NEXT_IN: tl.constexpr,
    NEXT_COLUMNS: tl.constexpr,
    PROGRAMS: tl.constexpr,
    RESIDENT: tl.constexpr,
) -> None:
    """out [COLUMNS] = f(source) W^T + bias, with f the norm's, if any; gated, of two halves; or added to `out`.

    Waits for `num_arrivals` before it reads `source`, having called `next_weight` into the L2 cache.
    """
    units: tl.constexpr = quotient(COLUMNS, UNIT * PROGRAMS)
    chunks: tl.constexpr = quotient(IN, SLICES * WIDTH)
    at_once: tl.constexpr = units_at_once(units, chunks, GATED)
    tiles = load_tiles(weight, 0, IN, COLUMNS, GATED, at_once, chunks, PROGRAMS)
    factors = load_factors(norm_weight, IN, chunks)
    if RESIDENT:
        if next_weight is not None:
            prefetch(next_weight, NEXT_IN, NEXT_COLUMNS, PROGRAMS)
        wait(counter, num_arrivals)
    for turn in tl.static_range(quotient(units, at_once)):
        if turn > 0:
            tiles = load_tiles(weight, turn * at_once, IN, COLUMNS, GATED, at_once, chunks, PROGRAMS)
        _finish(
            tiles, factors, source, eps, bias, out, turn * at_once, IN, COLUMNS, GATED, ADDS, at_once, chunks, PROGRAMS
        )  # fmt: skip


@triton.jit
def _finish(
    tiles: tl.tuple,
    factors: tl.tuple,
    source: tl.tensor,
    eps: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    first: tl.constexpr,
    IN: tl.constexpr,
    COLUMNS: tl.constexpr,
    GATED: tl.constexpr,
    ADDS: tl.constexpr,
    UNITS: tl.constexpr,
    CHUNKS: tl.constexpr,
    PROGRAMS: tl.constexpr,
) -> None:
    """The units from `first` on, whose weights are `tiles`: their sums, and what follows, rounded as by the layers."""
    turns = tl.arange(0, power_of_two(UNITS))[None, None, :]
    units = tl.program_id(0) + (first + turns) * PROGRAMS
    columns = units * UNIT + tl.arange(0, UNIT)[None, :, None]
    mask = (columns < COLUMNS) & (turns < UNITS)
    dtype: tl.constexpr = out.dtype.element_ty
    if ADDS:
        before = tl.load(out + columns, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
    sums = sums_of_parts(tiles, factors, source, eps, IN, 2 * UNITS if GATED else UNITS, CHUNKS)
    if GATED:
        sums, up_sums = tl.split(tl.reshape(sums, [1, UNIT, power_of_two(UNITS), 2]))
        gate = silu(sums.to(dtype).to(tl.float32), dtype)
        sums = gate * up_sums.to(dtype).to(tl.float32)
    if bias is not None:
        sums += tl.load(bias + columns, mask=mask, other=0.0).to(tl.float32)
    if ADDS:
        sums = sums.to(dtype).to(tl.float32) + before
    tl.store(out + columns, sums.to(dtype), mask=mask)
