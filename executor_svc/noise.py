"""Sampling noise as a pure function of (sequence seed, position, token id): Philox-4x32-10, made Gumbel.

Philox (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) is a keyed bijection of
128-bit counters: nothing is stored, and a number does not depend on which others are drawn. With all words of 32 bits:

    key     = (seed low word, seed high word)
    counter = (token_id >> 2, position low word, position high word, stream)
    x       = word number (token_id & 3) of Philox(counter, key)

`position` is the index in the sequence that the sampled token will have. `stream` is 0; other uses of a seed
would take others. Then, in float32:

    u     = min((float(x) + 0.5) * 2**-32, 1 - 2**-24)
    noise = -log(-log1p(-u))

which is Gumbel distributed, so that argmax(logits + noise) is a draw from softmax(logits). The exponential variable
-log1p(-u) keeps its full precision where it is small, which is where the noise is large and decides.
"""

import torch

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_SAMPLING_STREAM = 0

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def seed_as_int64(seed: int) -> int:
    """The int64 of the same 64 bits as a seed in [0, 2**64), as tensors hold seeds."""
    return seed - 2**64 if seed >= 2**63 else seed


def philox_4x32(counter: Words, key: tuple[torch.Tensor, torch.Tensor]) -> Words:
    """Ten rounds over int64 tensors, of shapes that broadcast, that hold 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The product of two words wraps at 64 bits; the shift copies the sign, and the mask drops the copies.
        left, right = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (right >> 32 & _MASK) ^ c1 ^ k0,
            right & _MASK,
            (left >> 32 & _MASK) ^ c3 ^ k1,
            left & _MASK,
        )
        k0, k1 = k0 + _WEYL[0] & _MASK, k1 + _WEYL[1] & _MASK
    return c0, c1, c2, c3


def random_words(
    seeds: torch.Tensor, positions: torch.Tensor, count: int, first_token: int = 0
) -> torch.Tensor:
    """The word x of each row and token id: int64 [num_rows, count], from int64 `seeds` and `positions`.

    Of `count` token ids from `first_token` on, a multiple of 4.
    """
    quads = torch.arange(first_token // 4, first_token // 4 + -(-count // 4), device=seeds.device)[None]
    return torch.stack(_words(seeds, positions, quads), dim=-1).flatten(1)[:, :count]


def random_words_of(seeds: torch.Tensor, positions: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """The word x of some token ids of each row: int64 [num_rows, n], as `token_ids`."""
    words = torch.stack(_words(seeds, positions, token_ids >> 2), dim=-1)
    return words.gather(-1, (token_ids & 3)[..., None])[..., 0]


def _words(seeds: torch.Tensor, positions: torch.Tensor, quads: torch.Tensor) -> Words:
    """The four words of each row and quad, token id >> 2: `quads` is int64 [num_rows or 1, n]."""
    seeds, positions = seeds[:, None], positions[:, None]
    stream = torch.full_like(quads, _SAMPLING_STREAM)
    counter = (quads, positions & _MASK, positions >> 32 & _MASK, stream)
    return philox_4x32(counter, (seeds & _MASK, seeds >> 32 & _MASK))


def gumbel_noise(
    seeds: torch.Tensor, positions: torch.Tensor, count: int, first_token: int = 0
) -> torch.Tensor:
    """The noise of each row and token id: float32 [num_rows, count]; see `random_words`."""
    return gumbel(random_words(seeds, positions, count, first_token))


def gumbel(words: torch.Tensor) -> torch.Tensor:
    """The noise that each word makes: float32 of the shape of `words`, int64 in [0, 2**32)."""
    uniform = ((words.float() + 0.5) * 2.0**-32).clamp_(max=1 - 2.0**-24)
    return -torch.log(-torch.log1p(-uniform))
