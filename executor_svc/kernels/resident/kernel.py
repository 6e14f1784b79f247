"""The kernel of stack.py: all layers of a decode step, in five phases each, by programs that all run at a time.

qkv | attention | o | gate and up | down. Before it waits for the others, a program has its own weights of the phase on
their way, and calls those of a later phase into the L2 cache.
"""

import triton
import triton.language as tl

from executor_svc.kernels.resident.attention import attend
from executor_svc.kernels.resident.barrier import arrive, arrive_last, wait
from executor_svc.kernels.resident.linear import linear
from executor_svc.kernels.resident.tiles import prefetch

NUM_PHASES = 5
POINTERS = (
    "input_norm",
    "qkv",
    "qkv_bias",
    "q_norm",
    "k_norm",
    "o",
    "o_bias",
    "post_norm",
    "gate_up",
    "down",
    "keys",
    "values",
)
"""What a row of the table of pointers points to, of one layer."""


_NUM_POINTERS = tl.constexpr(len(POINTERS))
_INPUT_NORM, _QKV, _QKV_BIAS, _Q_NORM, _K_NORM, _O, _O_BIAS, _POST_NORM, _GATE_UP, _DOWN, _KEYS, _VALUES = (
    tl.constexpr(place) for place in range(len(POINTERS))
)


@triton.jit
def _pointer(table: tl.tensor, layer: tl.tensor, PLACE: tl.constexpr, like: tl.tensor) -> tl.tensor:
    """The address at a place of POINTERS; elements are of the type that `like` points to."""
    address = tl.load(table + layer * _NUM_POINTERS + PLACE)
    return tl.multiple_of(address.to(like.dtype), 16)


@triton.jit(do_not_specialize=["table_stride", "first_layer", "end_layer"])
def resident_kernel(
    hidden: tl.tensor,
    qkv: tl.tensor,
    attended: tl.tensor,
    gated: tl.tensor,
    partials: tl.tensor,
    shares: tl.tensor,
    share_arrivals: tl.tensor,
    counter: tl.tensor,
    table: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    slot_mapping: tl.tensor,
    block_tables: tl.tensor,
    table_stride: tl.tensor,
    rows: tl.tensor,
    lengths: tl.tensor,
    first_layer: tl.tensor,
    end_layer: tl.tensor,
    eps: tl.tensor,
    scale_log2: tl.tensor,
    HIDDEN: tl.constexpr,
    INTERMEDIATE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    QKV_BIAS: tl.constexpr,
    OUTPUT_BIAS: tl.constexpr,
    QK_NORM: tl.constexpr,
    PROGRAMS: tl.constexpr,
    SPLITS: tl.constexpr,
    PHASE: tl.constexpr,
) -> None:
    """Layers from `first_layer` to `end_layer`; of one PHASE alone, without waiting, where it is not None."""
    RESIDENT: tl.constexpr = PHASE is None
    query_size: tl.constexpr = NUM_KV_HEADS * GROUP * HEAD_DIM
    qkv_size: tl.constexpr = query_size + 2 * NUM_KV_HEADS * HEAD_DIM
    arrived = 0
    for layer in tl.range(first_layer, end_layer, num_stages=1):
        # All at once, as each takes as long as all together.
        o, gate_up, down = (
            _pointer(table, layer, _O, hidden),
            _pointer(table, layer, _GATE_UP, hidden),
            _pointer(table, layer, _DOWN, hidden),
        )
        keys, values = _pointer(table, layer, _KEYS, hidden), _pointer(table, layer, _VALUES, hidden)
        q_norm = _pointer(table, layer, _Q_NORM, hidden) if QK_NORM else None
        k_norm = _pointer(table, layer, _K_NORM, hidden) if QK_NORM else None
        post_norm = _pointer(table, layer, _POST_NORM, hidden)
        next_qkv = _pointer(table, tl.minimum(layer + 1, end_layer - 1), _QKV, hidden)
        if RESIDENT or PHASE == 0:
            linear(
                hidden, _pointer(table, layer, _INPUT_NORM, hidden), eps, _pointer(table, layer, _QKV, hidden),
                _pointer(table, layer, _QKV_BIAS, hidden) if QKV_BIAS else None, qkv, o, counter, arrived,
                HIDDEN, qkv_size, False, False, query_size, HIDDEN, PROGRAMS, RESIDENT,
            )  # fmt: skip
        if RESIDENT:
            arrive(counter)
            arrived += PROGRAMS
            prefetch(gate_up, HIDDEN, INTERMEDIATE, PROGRAMS)
            prefetch(gate_up + INTERMEDIATE * HIDDEN, HIDDEN, INTERMEDIATE, PROGRAMS)
        if RESIDENT or PHASE == 1:
            if tl.program_id(0) < NUM_KV_HEADS * SPLITS:
                attend(
                    qkv, q_norm, k_norm, eps, cos, sin, slot_mapping, keys, values, block_tables, table_stride, rows,
                    lengths, attended, partials, shares, share_arrivals, scale_log2, counter, arrived,
                    NUM_KV_HEADS, GROUP, HEAD_DIM, BLOCK_SIZE, SPLITS, RESIDENT,
                )  # fmt: skip
            elif RESIDENT:
                # Whoever arrived before the others have done so would be counted as one of them.
                wait(counter, arrived)
        if RESIDENT:
            arrive(counter)
            arrived += PROGRAMS
        if RESIDENT or PHASE == 2:
            linear(
                attended, None, eps, o, _pointer(table, layer, _O_BIAS, hidden) if OUTPUT_BIAS else None, hidden,
                down, counter, arrived, query_size, HIDDEN, False, True, INTERMEDIATE, HIDDEN, PROGRAMS, RESIDENT,
            )  # fmt: skip
        if RESIDENT:
            arrive(counter)
            arrived += PROGRAMS
        if RESIDENT or PHASE == 3:
            linear(
                hidden, post_norm, eps, gate_up, None, gated, next_qkv, counter, arrived,
                HIDDEN, INTERMEDIATE, True, False, HIDDEN, qkv_size, PROGRAMS, RESIDENT,
            )  # fmt: skip
        if RESIDENT:
            arrive(counter)
            arrived += PROGRAMS
        if RESIDENT or PHASE == 4:
            linear(
                gated, None, eps, down, None, hidden, None, counter, arrived,
                INTERMEDIATE, HIDDEN, False, True, 0, 0, PROGRAMS, RESIDENT,
            )  # fmt: skip
        if RESIDENT:
            arrive(counter)
            arrived += PROGRAMS
    if RESIDENT:
        arrive_last(counter, arrived + PROGRAMS)
