"""What the virtual model says: the token at a position of a sequence is a hash of (sequence seed, position).

virtual_token(seed, position, vocab_size) = (hash >> 32) * vocab_size >> 32, where
hash = splitmix64(splitmix64(seed) + position * 0x9E3779B97F4A7C15), all modulo 2**64. Position counts from the first
prompt token: a prompt of N tokens is followed by the token at position N.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanoserve.arrays import Int32Array

UInt64Array = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# Tells the hash that decides an end from the one that decides the token.
_END_SALT = np.uint64(0xD1B54A32D192ED03)


def splitmix64(values: UInt64Array) -> UInt64Array:
    """The output function of the splitmix64 generator (Steele, Lea, Flood 2014), element by element."""
    mixed = values + _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _hashes(seeds: UInt64Array, positions: Int32Array) -> UInt64Array:
    return splitmix64(splitmix64(seeds) + positions.astype(np.uint64) * _GOLDEN)


def virtual_tokens(seeds: UInt64Array, positions: Int32Array, vocab_size: int) -> Int32Array:
    """The tokens at `positions` of the sequences seeded `seeds`, both [n]; as virtual_token, vectorised."""
    high = _hashes(seeds, positions) >> np.uint64(32)
    return (high * np.uint64(vocab_size) >> np.uint64(32)).astype(np.int32)


def virtual_token(seed: int, position: int, vocab_size: int) -> int:
    """The token at `position` of the sequence seeded `seed`, in [0, vocab_size)."""
    return int(virtual_tokens(np.array([seed], np.uint64), np.array([position], np.int32), vocab_size)[0])


@dataclass(frozen=True, slots=True)
class VirtualModel:
    """What the virtual executor samples: virtual_token, except that an end token may be given a frequency.

    With `end_token_id` set, that token comes at a position with `end_probability`, decided by another hash of the
    same seed and position; where virtual_token alone would give it, the next id comes instead.
    """

    vocab_size: int
    end_token_id: int | None = None
    end_probability: float = 0.0

    def tokens(self, seeds: UInt64Array, positions: Int32Array) -> Int32Array:
        """The tokens at `positions` of the sequences seeded `seeds`, both [n]."""
        tokens = virtual_tokens(seeds, positions, self.vocab_size)
        if self.end_token_id is None:
            return tokens
        tokens[tokens == self.end_token_id] = (self.end_token_id + 1) % self.vocab_size
        draws = (_hashes(seeds ^ _END_SALT, positions) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        tokens[draws < self.end_probability] = self.end_token_id
        return tokens

    def token(self, seed: int, position: int) -> int:
        """The token at `position` of the sequence seeded `seed`."""
        return int(self.tokens(np.array([seed], np.uint64), np.array([position], np.int32))[0])
