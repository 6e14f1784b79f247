"""The sums of a resident launch's linear layers: tiles of weights that are there, times inputs, joined once.

A part is one tile a chunk of inputs. What a thread makes of its own weights it keeps to itself while it goes through
the chunks; only at the end are all parts summed together.
"""

import triton
import triton.language as tl

from executor_svc.kernels.resident.sizes import SLICES, UNIT, WIDTH, halvings, power_of_two
from executor_svc.kernels.resident.tiles import load_inputs


@triton.jit
def sums_of_parts(
    tiles: tl.tuple,
    factors: tl.tuple,
    source: tl.tensor,
    eps: tl.tensor,
    IN: tl.constexpr,
    PARTS: tl.constexpr,
    CHUNKS: tl.constexpr,
) -> tl.tensor:
    """float32 [1, UNIT, PARTS], PARTS being rounded up to a power of two; `tiles` are by chunk, then part.

    Of three dimensions, as of two Triton would give a thread several columns of which to compute a gate.
    The inputs are RMSNorm's of `source`, rounded as the layer does, where there are `factors`.
    """
    if len(factors) > 0:
        squares = tl.zeros([UNIT], tl.float32)
        for chunk in tl.static_range(CHUNKS):
            values = load_inputs(source, chunk, IN).to(tl.float32)
            squares += tl.sum(tl.sum(values * values, axis=2), axis=1)
        scale = tl.math.rsqrt(squares / IN + eps)
    sums: tl.tuple = ()
    for _ in tl.static_range(PARTS):
        sums = sums + (tl.zeros([UNIT, 2, WIDTH // 8], tl.float32),)
    for chunk in tl.static_range(CHUNKS):
        values = load_inputs(source, chunk, IN)
        if len(factors) > 0:
            wide = (values.to(tl.float32) * scale[:, None, None]).to(values.dtype).to(tl.float32)
            values = (wide * factors[chunk].to(tl.float32)).to(values.dtype)
        longer: tl.tuple = ()
        for part in tl.static_range(PARTS):
            longer = longer + (sums[part] + _products(tiles[chunk * PARTS + part], values),)
        sums = longer
    joined = tl.reshape(_join(sums, PARTS), [UNIT, 2, WIDTH // 8, power_of_two(PARTS)])
    return tl.sum(tl.sum(joined, axis=2), axis=1)[None, :, :]


@triton.jit
def _products(tile: tl.tensor, values: tl.tensor) -> tl.tensor:
    """[UNIT, 2, WIDTH // 8]: the sums of what a thread holds itself, of a tile of two-byte weights with 8 warps."""
    products = tile.to(tl.float32) * values.to(tl.float32)
    held = tl.reshape(products, [UNIT, SLICES // 2, 2, WIDTH // 8, 8])
    return tl.sum(tl.sum(held, axis=4), axis=1)


@triton.jit
def _join(parts: tl.tuple, PARTS: tl.constexpr) -> tl.tensor:
    """Parts of a shape side by side: further dimensions, last, count them."""
    count: tl.constexpr = power_of_two(PARTS)
    joined = parts
    for _ in tl.static_range(count - PARTS):
        joined = joined + (tl.zeros_like(parts[0]),)
    for level in tl.static_range(halvings(PARTS)):
        joined = _pairs(joined, count >> (level + 1))
    return joined[0]


@triton.jit
def _pairs(parts: tl.tuple, COUNT: tl.constexpr) -> tl.tuple:
    """Each of the first COUNT joined with that as far behind it."""
    pairs: tl.tuple = ()
    for index in tl.static_range(COUNT):
        pairs = pairs + (tl.join(parts[index], parts[index + COUNT]),)
    return pairs
