"""The noise of executor_svc/noise.py, inside kernels: the same words bit for bit, the same numbers within some ulps.

Made of the kernel language's own Philox (which has noise.py's constants and order of words) and of a logarithm written
here, since the language has no log1p and the noise needs one that is precise near 0.
"""

import triton
import triton.language as tl

_LN2 = tl.constexpr(0.6931471805599453)
_ONE_BITS = tl.constexpr(0x3F800000)
_THREE_QUARTERS_BITS = tl.constexpr(0x3F400000)
_EXPONENT = tl.constexpr(-0x800000)  # the mask of a float's sign and exponent


@triton.jit
def words_of_quads(seed: tl.tensor, position: tl.tensor, quads: tl.tensor) -> tuple[tl.tensor, ...]:
    """Words 0 to 3 of the counters (quad, position, 0, 0): uint32, of the shape of `quads`.

    `seed` is int64; `position` and `quads`, which is token id >> 2, are int32 and not negative.
    """
    none = quads * 0
    w0, w1, w2, w3 = tl.philox(seed, quads, none + position, none, none)
    return w0, w1, w2, w3


@triton.jit
def words_of_ids(seed: tl.tensor, position: tl.tensor, ids: tl.tensor) -> tl.tensor:
    """The word of each token id, by a Philox each: uint32."""
    w0, w1, w2, w3 = words_of_quads(seed, position, ids >> 2)
    word = ids & 3
    return tl.where(word < 2, tl.where(word == 0, w0, w1), tl.where(word == 2, w2, w3))


@triton.jit
def words_of_range(seed: tl.tensor, position: tl.tensor, first: tl.tensor, COUNT: tl.constexpr) -> tl.tensor:
    """The words of the COUNT token ids from `first` on, a multiple of 4: uint32 [COUNT]; one Philox for four."""
    w0, w1, w2, w3 = words_of_quads(seed, position, (first >> 2) + tl.arange(0, COUNT // 4))
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@triton.jit
def exponential(words: tl.tensor) -> tl.tensor:
    """-log1p(-u) of each word's u: float32, in [2**-33, 17]; the noise is -log of it."""
    u = tl.minimum((words.to(tl.float32) + 0.5) * 2.0**-32, 1.0 - 2.0**-24)
    # 1 - u = m * 2**e with m in [0.75, 1.5). Where u is under 0.25, e is 0 and m - 1 = -u exactly.
    exponent = ((1.0 - u).to(tl.int32, bitcast=True) - _THREE_QUARTERS_BITS) & _EXPONENT
    scale = (-exponent + _ONE_BITS).to(tl.float32, bitcast=True)
    return -((exponent >> 23).to(tl.float32) * _LN2 + _log1p((scale - 1.0) - scale * u))


@triton.jit
def gumbel(words: tl.tensor) -> tl.tensor:
    """The noise of each word: float32."""
    bits = exponential(words).to(tl.int32, bitcast=True)
    exponent = (bits - _THREE_QUARTERS_BITS) & _EXPONENT
    mantissa = (bits - exponent).to(tl.float32, bitcast=True)
    return -((exponent >> 23).to(tl.float32) * _LN2 + _log1p(mantissa - 1.0))


@triton.jit
def _log1p(f: tl.tensor) -> tl.tensor:
    """log(1 + f) for f in [-0.25, 0.5], within 1e-7 of it: f - f^2 / 2 + f^3 P(f), P fitted to the relative error."""
    p = -0.04507475718855858
    p = p * f + 0.10463018715381622
    p = p * f - 0.13161194324493408
    p = p * f + 0.14478395879268646
    p = p * f - 0.1664731204509735
    p = p * f + 0.19990861415863037
    p = p * f - 0.2500009536743164
    p = p * f + 0.3333345055580139
    return f * f * (p * f - 0.5) + f
