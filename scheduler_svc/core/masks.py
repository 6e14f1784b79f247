"""Which tokens a guided sequence may sample next, in the smallest of the three forms that a plan has for it."""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class MaskForm(Enum):
    """How a mask is written; the values are the fields of RowMask in executor.proto."""

    ALLOWED_IDS = "allowed_ids"
    FORBIDDEN_IDS = "forbidden_ids"
    ALLOWED_BITS = "allowed_bits"


@dataclass(frozen=True, slots=True)
class TokenMask:
    """Which tokens are allowed; `data` is little-endian int32 ids, or one bit a token, least significant first."""

    form: MaskForm
    data: bytes

    @classmethod
    def smallest(cls, bits: bytes, vocab_size: int) -> "TokenMask":
        """The mask of `bits`, ceil(vocab_size / 8) bytes, in the form that takes the fewest; none beyond is set."""
        packed = np.frombuffer(bits, np.uint8)
        num_allowed = int(np.bitwise_count(packed.view(np.uint64) if len(bits) % 8 == 0 else packed).sum())
        num_ids = min(num_allowed, vocab_size - num_allowed)
        if 4 * num_ids >= len(bits):
            return cls(MaskForm.ALLOWED_BITS, bits)
        if num_ids == num_allowed:
            return cls(MaskForm.ALLOWED_IDS, _pack(_places_of_bits(packed)))
        forbidden = _places_of_bits(~packed)
        return cls(MaskForm.FORBIDDEN_IDS, _pack(forbidden[forbidden < vocab_size]))

    def allowed(self, vocab_size: int) -> NDArray[np.bool_]:
        """Which tokens are allowed, [vocab_size]."""
        if self.form is MaskForm.ALLOWED_BITS:
            bits = np.unpackbits(np.frombuffer(self.data, np.uint8), count=vocab_size, bitorder="little")
            return bits.astype(np.bool_)
        listed = np.zeros(vocab_size, np.bool_)
        listed[np.frombuffer(self.data, "<i4")] = True
        return listed if self.form is MaskForm.ALLOWED_IDS else ~listed


class RowMask(NamedTuple):
    """The mask of a row that samples in a plan."""

    row: int
    mask: TokenMask


def _places_of_bits(packed: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Which bits are set, in order; quick where few bytes have any."""
    filled = (packed != 0).nonzero()[0]
    bits = np.unpackbits(packed[filled], bitorder="little").view(np.bool_).nonzero()[0]
    places: NDArray[np.intp] = 8 * filled[bits >> 3] + (bits & 7)
    return places


def _pack(ids: NDArray[np.intp]) -> bytes:
    return ids.astype("<i4").tobytes()
