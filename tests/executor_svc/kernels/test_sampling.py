"""The sampling kernels against executor_svc/noise.py, bit for bit, and executor_svc/sampler.py, token for token."""

import math

import pytest
import torch
from kernel_checks import DTYPES, Draws, new_seed

from executor_svc import noise
from executor_svc.plan import RowStatus
from executor_svc.sampler import apply_temperature

pytest.importorskip("triton", reason="the kernels need Triton")

import triton
import triton.language as tl

from executor_svc.kernels.gumbel import gumbel, words_of_ids, words_of_range
from executor_svc.kernels.sampling import sample_rows

# Numpy, which the interpreter computes with, warns of what these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")

SEED = new_seed()
NUM_ROWS = 20
GAP = 1e-4
"""Below it two tokens are as good as equal: the kernels may round otherwise than the sampler."""


@triton.jit
def noise_kernel(seeds, positions, words, by_id, numbers, COUNT: tl.constexpr) -> None:
    row, first = tl.program_id(0), tl.program_id(1) * COUNT
    ids = first + tl.arange(0, COUNT)
    at = row * tl.num_programs(1) * COUNT + ids
    seed, position = tl.load(seeds + row), tl.load(positions + row)
    range_words = words_of_range(seed, position, first, COUNT)
    tl.store(words + at, range_words.to(tl.int64))
    tl.store(by_id + at, words_of_ids(seed, position, ids).to(tl.int64))
    tl.store(numbers + at, gumbel(range_words))


@triton.jit
def gumbel_kernel(words, numbers, COUNT: tl.constexpr) -> None:
    at = tl.arange(0, COUNT)
    tl.store(numbers + at, gumbel(tl.load(words + at).to(tl.uint32)))


def row_seeds(draws: Draws, count: int) -> torch.Tensor:
    seeds = torch.randint(-(2**63), 2**63 - 1, (count,), generator=draws.generator)
    return seeds.to(draws.device)


@pytest.mark.parametrize("seed", [SEED])
def test_words_are_those_of_the_reference_bit_for_bit(seed: int, device: torch.device) -> None:
    draws = Draws(seed, torch.float32, device)
    seeds = row_seeds(draws, 3)
    positions = draws.int32([0, 2**31 - 1, draws.choices.randrange(2**31)])
    words = torch.full((3, 1024), -1, dtype=torch.int64, device=device)
    by_id, numbers = torch.full_like(words, -1), draws.poisoned(3, 1024)
    noise_kernel[(3, 4)](seeds, positions, words, by_id, numbers, COUNT=256)
    expected = noise.random_words(seeds, positions.long(), 1024)
    assert torch.equal(words, expected)
    assert torch.equal(by_id, expected)
    torch.testing.assert_close(numbers, noise.gumbel(expected), rtol=1e-6, atol=1e-6)


def test_noise_is_precise_at_both_ends_and_where_its_logarithms_change_exponent(device: torch.device) -> None:
    around = [int(2**32 * share) for share in (0.25, 0.5, 1 - math.exp(-1), 0.625, 0.75, 0.875)]
    words = [*range(64), *(2**32 - 1 - word for word in range(64))]
    words += [place + step for place in around for step in range(-60, 60, 10)]
    words += [2**power + step for power in range(8, 32) for step in (-1, 0)]
    words = torch.tensor(words + [0] * (256 - len(words)), device=device)
    numbers = torch.full((256,), torch.nan, device=device)
    gumbel_kernel[(1,)](words, numbers, COUNT=256)
    torch.testing.assert_close(numbers, noise.gumbel(words), rtol=1e-6, atol=1e-6)


class Batch:
    """Random logits of `num_rows` rows, sampled by rows of a batch of NUM_ROWS in random order."""

    def __init__(self, seed: int, num_rows: int, vocab_size: int, dtype: torch.dtype, device: torch.device):
        self.draws = Draws(seed, dtype, device)
        self.logits = self.draws.normal(num_rows, vocab_size, scale=3.0)
        self.rows = self.draws.int32(self.draws.choices.sample(range(NUM_ROWS), num_rows))
        self.positions = self.draws.int32([self.draws.choices.randrange(4096) for _ in range(num_rows)])
        temperatures = [
            self.draws.choices.choice([0.0, 1e-40, 1e-6, 0.3, 1.0, 50.0]) for _ in range(NUM_ROWS)
        ]
        self.temperature = torch.tensor(temperatures, device=device)
        self.seeds = row_seeds(self.draws, NUM_ROWS)

    def sample(self) -> tuple[list[int], list[int]]:
        """Token ids and statuses; what is not written is -1."""
        out = torch.full_like(self.rows, -1), torch.full_like(self.rows, -1)
        sample_rows(self.logits, self.rows, self.positions, self.temperature, self.seeds, out=out)
        return out[0].tolist(), out[1].tolist()

    def scores(self) -> torch.Tensor:
        """What the sampler compares: float32 [num_rows, vocab_size]."""
        rows = self.rows.long()
        heat, logits = self.temperature[rows], self.logits.float()
        numbers = noise.gumbel_noise(self.seeds[rows], self.positions.long(), logits.shape[-1])
        drawn = apply_temperature(logits, heat) + numbers
        return torch.where(heat[:, None] > 0, drawn, logits)

    def check(self, token_ids: list[int]) -> None:
        """Each is the best, or as good as; greedy rows take exactly the first of the best."""
        scores = self.scores()
        for index, token_id in enumerate(token_ids):
            best = int(scores[index].argmax())
            if self.temperature[self.rows[index]] == 0:
                assert token_id == best
            assert token_id == best or scores[index, best] - scores[index, token_id] < GAP


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [SEED])
@pytest.mark.parametrize(("num_rows", "vocab_size"), [(6, 97), (5, 5003), (3, 8192)])
def test_tokens_are_those_of_the_sampler(
    num_rows: int, vocab_size: int, seed: int, dtype: torch.dtype, device: torch.device
) -> None:
    batch = Batch(seed, num_rows, vocab_size, dtype, device)
    token_ids, statuses = batch.sample()
    batch.check(token_ids)
    assert statuses == [RowStatus.OK] * num_rows


@pytest.mark.parametrize("seed", [SEED])
def test_a_real_vocabulary_is_sampled_alike(seed: int, device: torch.device) -> None:
    batch = Batch(seed, 1, 151936, torch.bfloat16, device)
    batch.temperature.fill_(0.9)
    batch.check(batch.sample()[0])


@pytest.mark.parametrize("seed", [SEED])
def test_equal_logits_give_the_lowest_id_to_greedy_rows(seed: int, device: torch.device) -> None:
    batch = Batch(seed, 2, 9000, torch.bfloat16, device)
    batch.temperature.zero_()
    batch.logits[0] = 1.0
    batch.logits[1, [8001, 3, 4097]] = 99.0
    assert batch.sample()[0] == [0, 3]


@pytest.mark.parametrize("seed", [SEED])
def test_forbidden_tokens_and_chunks_of_them_are_never_drawn(seed: int, device: torch.device) -> None:
    batch = Batch(seed, 3, 9000, torch.float32, device)
    batch.temperature.fill_(2.0)
    batch.logits[:, :5000] = -torch.inf
    batch.logits[2, :8999] = -torch.inf
    token_ids, statuses = batch.sample()
    batch.check(token_ids)
    assert token_ids[2] == 8999
    assert statuses == [RowStatus.OK] * 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [SEED])
def test_non_finite_rows_fail_alone(seed: int, dtype: torch.dtype, device: torch.device) -> None:
    batch = Batch(seed, 8, 3000, dtype, device)
    batch.logits[1, 2321] = torch.nan
    batch.logits[2, 17] = torch.inf
    batch.logits[4] = -torch.inf
    batch.logits[5] = torch.nan
    batch.logits[6, 1:] = -torch.inf
    token_ids, statuses = batch.sample()
    failed = [1, 2, 4, 5]
    assert [index for index in range(8) if statuses[index] == RowStatus.NON_FINITE_LOGITS] == failed
    assert all(token_ids[index] == 0 for index in [*failed, 6])
    assert all(statuses[index] == RowStatus.OK for index in (0, 3, 6, 7))


@pytest.mark.parametrize("seed", [SEED])
def test_a_row_does_not_depend_on_the_batch(seed: int, device: torch.device) -> None:
    batch = Batch(seed, 18, 3000, torch.bfloat16, device)
    together = batch.sample()[0]
    for index in range(0, 18, 8):
        alone = sample_rows(
            batch.logits[index : index + 1],
            batch.rows[index : index + 1],
            batch.positions[index : index + 1],
            batch.temperature,
            batch.seeds,
        )
        assert alone[0].item() == together[index]
