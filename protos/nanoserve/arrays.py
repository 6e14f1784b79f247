"""Bulk numbers as the contract carries them: `bytes` of little-endian int32 or float32."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Int32Array = NDArray[np.int32]
Float32Array = NDArray[np.float32]

_INT32 = np.dtype("<i4")
_FLOAT32 = np.dtype("<f4")


def pack_int32(values: Sequence[int] | NDArray[np.integer]) -> bytes:
    """Packs integers, each in [-2**31, 2**31)."""
    return np.asarray(values, dtype=_INT32).tobytes()


def unpack_int32(data: bytes) -> Int32Array:
    """Unpacks integers into a read-only array `[len(data) / 4]`; ValueError where the length is not a multiple."""
    return np.frombuffer(data, dtype=_INT32)


def pack_float32(values: Sequence[float] | NDArray[np.floating]) -> bytes:
    """Packs reals, rounded to float32."""
    return np.asarray(values, dtype=_FLOAT32).tobytes()


def unpack_float32(data: bytes) -> Float32Array:
    """Unpacks reals into a read-only array `[len(data) / 4]`; ValueError where the length is not a multiple."""
    return np.frombuffer(data, dtype=_FLOAT32)
