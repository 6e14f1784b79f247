"""Top-k, top-p and min-p without a sort: for each row the lowest score that is kept, and the last id that has it.

A score is v = (logit - largest) / temperature, never above 0. One program a row finds thresholds by bisection over the
order of the logits' bits, reading the row, which stays in the L2 cache, once for each bit; scores, which may be equal
where logits are not, decide then.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

_BLOCK = 8192
_ANY_ID = tl.constexpr(2**31 - 1)
_LOWEST_KEY = tl.constexpr(-(2**31) + 0x7FFFFF)  # of -inf


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Each [n]: a token is kept whose score is above `cut`, or equal to it and its id at most `last_id`."""

    peak: torch.Tensor
    """float32: the row's largest logit."""
    cut: torch.Tensor
    """float32."""
    last_id: torch.Tensor
    """int32."""


def find_thresholds(
    logits: torch.Tensor,
    rows: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
) -> Thresholds:
    """What executor_svc/sampler.py keeps of contiguous `logits` [n, vocab_size], bfloat16 or float32.

    `rows` is int32 [n]; the parameters are [num_rows], `top_k` int64 and the others float32; 0, 1 and 0 keep all.
    A sum of probabilities may round otherwise than the sampler's, and move the end of the top-p set by a token.
    """
    num_rows, vocab_size = logits.shape
    assert logits.is_contiguous()
    peak = torch.empty(num_rows, dtype=torch.float32, device=logits.device)
    found = Thresholds(peak, torch.empty_like(peak), torch.empty_like(rows))
    if num_rows:
        _threshold_kernel[(num_rows,)](
            logits,
            rows,
            temperature,
            top_k,
            top_p,
            min_p,
            found.peak,
            found.cut,
            found.last_id,
            vocab_size,
            SHIFT=16 if logits.dtype == torch.bfloat16 else 0,
            BLOCK=min(_BLOCK, triton.next_power_of_2(vocab_size)),
            num_warps=16,
        )
    return found


@triton.jit
def _threshold_kernel(
    logits: tl.tensor,
    rows: tl.tensor,
    temperature: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    out_peak: tl.tensor,
    out_cut: tl.tensor,
    out_last_id: tl.tensor,
    vocab_size: tl.tensor,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    index = tl.program_id(0)
    row = tl.load(rows + index)
    heat = tl.load(temperature + row)
    most = tl.minimum(tl.load(top_k + row), vocab_size).to(tl.int32)
    share = tl.load(top_p + row)
    least = tl.load(min_p + row)
    source = logits + index.to(tl.int64) * vocab_size
    peak = heat * 0.0
    cut = peak + float("-inf")
    last_id = index * 0 + _ANY_ID
    if heat > 0:
        peak = _peak(source, vocab_size, BLOCK)
        if (most > 0) | (share < 1):
            low = (index * 0 + _LOWEST_KEY) >> SHIFT
            high = _keys(peak, SHIFT)
            allowed = vocab_size + index * 0
            if most > 0:
                low = _kth_key(source, low, high, most, vocab_size, SHIFT, BLOCK)
                cut = tl.div_rn(_value(low, SHIFT) - peak, heat)
                above, _ = _above(source, cut, peak, heat, vocab_size, BLOCK)
                allowed = most - above
            if share < 1:
                _, mass = _above(source, cut, peak, heat, vocab_size, BLOCK)
                # Without a top-k, what is not above -inf weighs nothing.
                mass += tl.where(cut == float("-inf"), 0.0, allowed * tl.exp(cut))
                wanted = share * mass
                low = _nucleus_key(source, low, high, wanted, peak, heat, vocab_size, SHIFT, BLOCK)
                end = tl.div_rn(_value(low, SHIFT) - peak, heat)
                _, before = _above(source, end, peak, heat, vocab_size, BLOCK)
                # As many equals as begin before the wanted mass; at least one.
                count = tl.minimum(tl.ceil((wanted - before) / tl.maximum(tl.exp(end), 1e-37)), 1e9)
                count = tl.maximum(count.to(tl.int32), 1)
                allowed = tl.where(end == cut, tl.minimum(count, allowed), count)
                cut = end
            last_id = _id_of_equal(source, cut, allowed, peak, heat, vocab_size, BLOCK)
        bound = tl.log(least)
        last_id = tl.where(bound > cut, _ANY_ID, last_id)
        cut = tl.maximum(bound, cut)
    tl.store(out_peak + index, peak)
    tl.store(out_cut + index, cut)
    tl.store(out_last_id + index, last_id)


@triton.jit
def _values(source: tl.tensor, first: tl.tensor, vocab_size: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    ids = first + tl.arange(0, BLOCK)
    return tl.load(source + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32)


@triton.jit
def _keys(values: tl.tensor, SHIFT: tl.constexpr) -> tl.tensor:
    """int32 in the order of the values; their lowest SHIFT bits, which are 0, are left out."""
    bits = values.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> SHIFT


@triton.jit
def _value(key: tl.tensor, SHIFT: tl.constexpr) -> tl.tensor:
    """The float32 of a key."""
    bits = key << SHIFT
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) & (-(1 << SHIFT))).to(tl.float32, bitcast=True)


@triton.jit
def _peak(source: tl.tensor, vocab_size: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    for first in range(0, vocab_size, BLOCK):
        largest = tl.maximum(largest, _values(source, first, vocab_size, BLOCK))
    return tl.max(largest, axis=0)


@triton.jit
def _kth_key(
    source: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    most: tl.tensor,
    vocab_size: tl.tensor,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The largest key that at least `most` tokens reach."""
    for _ in range(32 - SHIFT):
        middle = (low | high) - ((low ^ high) >> 1)
        counts = tl.zeros([BLOCK], tl.int32)
        for first in range(0, vocab_size, BLOCK):
            counts += (_keys(_values(source, first, vocab_size, BLOCK), SHIFT) >= middle).to(tl.int32)
        reached = tl.sum(counts, axis=0) >= most
        low, high = tl.where(reached, middle, low), tl.where(reached | (low == high), high, middle - 1)
    return low


@triton.jit
def _nucleus_key(
    source: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    wanted: tl.tensor,
    peak: tl.tensor,
    heat: tl.tensor,
    vocab_size: tl.tensor,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The smallest key above which there is less than the wanted mass."""
    for _ in range(32 - SHIFT):
        middle = (low & high) + ((low ^ high) >> 1)
        mass = tl.zeros([BLOCK], tl.float32)
        for first in range(0, vocab_size, BLOCK):
            values = _values(source, first, vocab_size, BLOCK)
            mass += tl.where(_keys(values, SHIFT) > middle, tl.exp((values - peak) / heat), 0.0)
        enough = tl.sum(mass, axis=0) < wanted
        low, high = tl.where(enough | (low == high), low, middle + 1), tl.where(enough, middle, high)
    return low


@triton.jit
def _above(
    source: tl.tensor,
    cut: tl.tensor,
    peak: tl.tensor,
    heat: tl.tensor,
    vocab_size: tl.tensor,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """How many scores are above `cut`, and the sum of their exponentials."""
    counts = tl.zeros([BLOCK], tl.int32)
    mass = tl.zeros([BLOCK], tl.float32)
    for first in range(0, vocab_size, BLOCK):
        scores = tl.div_rn(_values(source, first, vocab_size, BLOCK) - peak, heat)
        counts += (scores > cut).to(tl.int32)
        mass += tl.where(scores > cut, tl.exp(scores), 0.0)
    return tl.sum(counts, axis=0), tl.sum(mass, axis=0)


@triton.jit
def _id_of_equal(
    source: tl.tensor,
    cut: tl.tensor,
    count: tl.tensor,
    peak: tl.tensor,
    heat: tl.tensor,
    vocab_size: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The id of the score number `count` of those equal to `cut`; any id where there are no more than that."""
    found = tl.zeros([BLOCK], tl.int32) + _ANY_ID
    seen = vocab_size * 0
    for first in range(0, vocab_size, BLOCK):
        ids = first + tl.arange(0, BLOCK)
        scores = tl.div_rn(_values(source, first, vocab_size, BLOCK) - peak, heat)
        equal = ((scores == cut) & (ids < vocab_size)).to(tl.int32)
        number = seen + tl.cumsum(equal, axis=0)
        found = tl.minimum(found, tl.where((equal != 0) & (number == count), ids, _ANY_ID))
        seen += tl.sum(equal, axis=0)
    return tl.min(found, axis=0)
