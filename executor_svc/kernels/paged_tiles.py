"""What both attention kernels do: attend from queries that share a KV head to consecutive positions of one row."""

import triton
import triton.language as tl

MIN_DOT = 16
"""The smallest side of a tl.dot."""


@triton.jit
def attend_tiles(
    query: tl.tensor,
    query_positions: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    table: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    kv_head: tl.tensor,
    scale_log2: tl.tensor,
    output: tl.tensor,
    peak: tl.tensor,
    total: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    DIM: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
    TOTAL_BY_PLACE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The online softmax, base 2, over the positions from `begin` to `end`, a tile at a time; nothing else is read.

    `query` is [M, DIM]; query i sees positions up to query_positions[i] where MASKED, all of them where not, and must
    see one in the first tile of all. Returns `output` [M, DIM] (to be divided by the total), `peak` [M] (the largest
    score) and `total` (of the weights), which is [M], or [M, TILE] where TOTAL_BY_PLACE: summed over the tiles only.
    """
    steps = tl.arange(0, TILE)
    block_ids = load_block_ids(table, begin + steps, end, BLOCK_SIZE)
    for start in range(begin, end, TILE):
        positions = start + steps
        offsets = cache_offsets(block_ids, positions, kv_head, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE)
        # A tile ahead of the keys and values, so that their loads never wait for this one.
        block_ids = load_block_ids(table, positions + TILE, end, BLOCK_SIZE)
        tile_keys = load_heads(keys, offsets, positions < end, HEAD_DIM, DIM)
        tile_values = load_heads(values, offsets, positions < end, HEAD_DIM, DIM)
        scores = tl.dot(query, tl.trans(tile_keys), input_precision="ieee")
        if MASKED:
            scores = tl.where(positions[None, :] <= query_positions[:, None], scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1) * scale_log2)
        weights = tl.exp2(scores * scale_log2 - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        if TOTAL_BY_PLACE:
            total = total * shrink[:, None] + weights
        else:
            total = total * shrink + tl.sum(weights, 1)
        output = output * shrink[:, None]
        output = tl.dot(weights.to(tile_values.dtype), tile_values, output, input_precision="ieee")
        peak = new_peak
    return output, peak, total


@triton.jit
def load_block_ids(
    table: tl.tensor, positions: tl.tensor, end: tl.tensor, BLOCK_SIZE: tl.constexpr
) -> tl.tensor:
    """The block that holds each position: int32 [TILE]; 0 from `end` on."""
    return tl.load(table + positions.to(tl.uint32) // BLOCK_SIZE, mask=positions < end, other=0)


@triton.jit
def cache_offsets(
    block_ids: tl.tensor,
    positions: tl.tensor,
    kv_head: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
) -> tl.tensor:
    """Where each position's head starts in [num_blocks, block_size, num_kv_heads, head_dim]: int64 [TILE]."""
    # A cache may have more elements than int32 counts; a block never has.
    within = ((positions.to(tl.uint32) % BLOCK_SIZE).to(tl.int32) * NUM_KV_HEADS + kv_head) * HEAD_DIM
    return block_ids.to(tl.int64) * (BLOCK_SIZE * NUM_KV_HEADS * HEAD_DIM) + within


@triton.jit
def load_heads(
    source: tl.tensor, offsets: tl.tensor, held: tl.tensor, HEAD_DIM: tl.constexpr, DIM: tl.constexpr
) -> tl.tensor:
    """[len(offsets), DIM]: the HEAD_DIM elements from each offset on; zeros where not held and past HEAD_DIM."""
    dims = tl.arange(0, DIM)
    mask = held[:, None]
    if DIM != HEAD_DIM:
        mask = mask & (dims < HEAD_DIM)[None, :]
    return tl.load(source + (offsets[:, None] + dims[None, :]), mask=mask, other=0.0)
