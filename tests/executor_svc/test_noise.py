"""Philox against its published vectors and a second implementation; the Gumbel noise against what it should be."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import gpu

from executor_svc.noise import gumbel, gumbel_noise, philox_4x32, random_words, seed_as_int64

# From kat_vectors of the Random123 distribution: philox4x32, 10 rounds; counter, key, result.
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]
seeds = st.integers(0, 2**64 - 1)


def python_philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox-4x32-10 in whole numbers of Python, written from the paper."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32) ^ b ^ k, q % 2**32, (p >> 32) ^ d ^ m, p % 2**32
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return [a, b, c, d]


def python_noise(seed: int, position: int, token_id: int) -> float:
    counter = [token_id >> 2, position % 2**32, position >> 32, 0]
    word = python_philox(counter, [seed % 2**32, seed >> 32])[token_id & 3]
    uniform = float(min((np.float32(word) + np.float32(0.5)) / np.float32(2**32), np.float32(1 - 2**-24)))
    return -math.log(-math.log1p(-uniform))


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter: list[int], key: list[int], result: list[int]) -> None:
    a, b, c, d = (torch.tensor([word]) for word in counter)
    k, m = (torch.tensor([word]) for word in key)
    assert [int(word) for word in philox_4x32((a, b, c, d), (k, m))] == result
    assert python_philox(counter, key) == result


@given(seeds, st.integers(0, 2**31 - 1), st.integers(1, 50))
def test_noise_is_the_documented_function_of_seed_position_and_token(
    seed: int, position: int, size: int
) -> None:
    noise = gumbel_noise(torch.tensor([seed_as_int64(seed)]), torch.tensor([position]), size)
    expected = [python_noise(seed, position, token_id) for token_id in range(size)]
    np.testing.assert_allclose(noise[0].numpy(), expected, rtol=2e-6, atol=2e-6)


def test_words_of_a_row_do_not_depend_on_the_batch_or_the_vocabulary() -> None:
    rng = np.random.default_rng(0)
    row_seeds = torch.tensor(rng.integers(-(2**63), 2**63, 9))
    positions = torch.tensor(rng.integers(0, 2**31, 9))
    together = random_words(row_seeds, positions, 1001)
    for row in range(9):
        alone = random_words(row_seeds[row : row + 1], positions[row : row + 1], 1001)
        assert torch.equal(alone[0], together[row])
    assert torch.equal(random_words(row_seeds, positions, 333), together[:, :333])


def test_noise_of_a_row_does_not_depend_on_the_batch() -> None:
    rng = np.random.default_rng(1)
    row_seeds = torch.tensor(rng.integers(-(2**63), 2**63, 7))
    positions = torch.tensor(rng.integers(0, 2**31, 7))
    together = gumbel_noise(row_seeds, positions, 1003)
    for row in range(7):
        alone = gumbel_noise(row_seeds[row : row + 1], positions[row : row + 1], 1003)[0]
        np.testing.assert_allclose(alone.numpy(), together[row].numpy(), rtol=2e-6, atol=2e-6)


def test_neighbouring_seeds_positions_and_tokens_share_no_words() -> None:
    row_seeds = torch.tensor([0, 1, 1 << 32, -1]).repeat_interleave(16)
    positions = torch.arange(16).repeat(4)
    words = random_words(row_seeds, positions, 64).flatten()
    # 4,096 words of 32 bits: a collision has odds of 1 in 500.
    assert len(words.unique()) == len(words)


def test_noise_is_gumbel_distributed() -> None:
    noise = gumbel_noise(torch.arange(200), torch.full((200,), 5), 5000).double().numpy().ravel()
    # A Gumbel variable's mean is Euler's constant, its variance pi^2 / 6.
    assert noise.mean() == pytest.approx(0.5772157, abs=0.005)
    assert noise.var() == pytest.approx(math.pi**2 / 6, abs=0.01)
    ranked = np.exp(-np.exp(-np.sort(noise)))
    uniform = (np.arange(len(ranked)) + 0.5) / len(ranked)
    # Kolmogorov-Smirnov over 10^6 numbers: 1.95 / sqrt(n) has a probability of 0.1%.
    assert np.abs(ranked - uniform).max() < 1.95 / math.sqrt(len(ranked))


def test_noise_is_finite_and_fine_where_it_is_large() -> None:
    ends = gumbel(torch.tensor([0, 2**32 - 1]))
    assert ends.tolist() == pytest.approx([22.874, -2.812], abs=1e-3)
    assert len(gumbel(torch.arange(64)).unique()) == 64


@gpu
def test_cuda_makes_the_same_words_and_noise() -> None:
    rng = np.random.default_rng(2)
    row_seeds = torch.tensor(rng.integers(-(2**63), 2**63, 33))
    positions = torch.tensor(rng.integers(0, 2**31, 33))
    ours = random_words(row_seeds.cuda(), positions.cuda(), 1001).cpu()
    assert torch.equal(ours, random_words(row_seeds, positions, 1001))
    torch.testing.assert_close(gumbel(ours.cuda()).cpu(), gumbel(ours), rtol=2e-6, atol=2e-6)
