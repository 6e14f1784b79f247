"""What a resident launch reads of a weight: tiles of UNIT columns by SLICES * WIDTH inputs, [UNIT, SLICES, WIDTH].

Unit u of a program is the columns from (program + u * PROGRAMS) * UNIT on, which lie in a row in memory.
"""

import triton
import triton.language as tl

from executor_svc.kernels.prefetch import prefetch_run
from executor_svc.kernels.resident.sizes import SLICES, UNIT, WIDTH, is_multiple, quotient


@triton.jit
def load_tiles(
    weight: tl.tensor,
    first: tl.constexpr,
    IN: tl.constexpr,
    COLUMNS: tl.constexpr,
    GATED: tl.constexpr,
    UNITS: tl.constexpr,
    CHUNKS: tl.constexpr,
    PROGRAMS: tl.constexpr,
) -> tl.tuple:
    """The tiles of UNITS units from the program's `first` on: by chunk of inputs, then unit, then half where gated."""
    tiles: tl.tuple = ()
    for chunk in tl.static_range(CHUNKS):
        inputs = input_places(chunk)
        for index in tl.static_range(UNITS):
            unit = tl.program_id(0) + (first + index) * PROGRAMS
            own = weight + (unit * (UNIT * IN) + tl.arange(0, UNIT)[:, None, None] * IN + inputs)
            held = unit * UNIT < COLUMNS
            if not is_multiple(IN, SLICES * WIDTH):
                held = held & (inputs < IN)
            tiles = tiles + (tl.load(own, mask=held, other=0.0, cache_modifier=".cg"),)
            if GATED:
                tiles = tiles + (tl.load(own + COLUMNS * IN, mask=held, other=0.0, cache_modifier=".cg"),)
    return tiles


@triton.jit
def load_factors(norm_weight: tl.tensor, IN: tl.constexpr, CHUNKS: tl.constexpr) -> tl.tuple:
    """A norm's weights as load_inputs has the inputs, a chunk each; none where there is no norm."""
    factors: tl.tuple = ()
    if norm_weight is not None:
        for chunk in tl.static_range(CHUNKS):
            inputs = input_places(chunk) + tl.zeros([UNIT, 1, 1], tl.int32)
            factors = factors + (tl.load(norm_weight + inputs, mask=inputs < IN, other=0.0),)
    return factors


@triton.jit
def load_inputs(source: tl.tensor, chunk: tl.constexpr, IN: tl.constexpr) -> tl.tensor:
    """A chunk of what other programs wrote, once a column, so that each thread has its weights': as a tile."""
    inputs = input_places(chunk) + tl.zeros([UNIT, 1, 1], tl.int32)
    if not is_multiple(IN, SLICES * WIDTH):
        values = tl.load(source + inputs, mask=inputs < IN, other=0.0, cache_modifier=".cg")
    else:
        values = tl.load(source + inputs, cache_modifier=".cg")
    return values


@triton.jit
def input_places(chunk: tl.constexpr) -> tl.tensor:
    """Which inputs a chunk is of: [1, SLICES, WIDTH]."""
    slices = tl.arange(0, SLICES)[None, :, None] * WIDTH
    return chunk * (SLICES * WIDTH) + slices + tl.arange(0, WIDTH)[None, None, :]


@triton.jit
def prefetch(weight: tl.tensor, IN: tl.constexpr, COLUMNS: tl.constexpr, PROGRAMS: tl.constexpr) -> None:
    """Calls all weights of this program into the L2 cache."""
    for index in tl.static_range(quotient(COLUMNS, UNIT * PROGRAMS)):
        unit = tl.program_id(0) + index * PROGRAMS
        if unit * UNIT < COLUMNS:
            prefetch_run(weight + unit * (UNIT * IN), UNIT * IN)
