"""Filters without a sort against the sampler's, which sorts."""

import pytest
import torch
from kernel_checks import DTYPES, Draws, new_seed

from executor_svc.noise import gumbel_noise
from executor_svc.sampler import apply_min_p, apply_temperature, apply_top_k_top_p

pytest.importorskip("triton", reason="the kernels need Triton")

from executor_svc.kernels.filtering import find_thresholds
from executor_svc.kernels.sampling import sample_filtered_rows

# Numpy, which the interpreter computes with, warns of infinities.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"
)

SEED = new_seed()
FILTERS = [
    (1, 1.0, 0.0),
    (7, 1.0, 0.0),
    (0, 0.9, 0.0),
    (0, 1.0, 0.05),
    (40, 0.7, 0.01),
    (0, 1.0, 0.0),
    (9999, 0.3, 1.0),
]
"""Top-k, top-p and min-p of each row."""
NUM_ROWS = len(FILTERS)


class Filtered:
    """Rows of random logits, one for each of FILTERS, at random temperatures."""

    def __init__(self, seed: int, vocab_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.draws = Draws(seed, dtype, device)
        self.logits = self.draws.normal(NUM_ROWS, vocab_size, scale=3.0)
        self.rows = self.draws.int32(range(NUM_ROWS))
        heats = [self.draws.choices.choice([0.4, 1.0, 3.0]) for _ in range(NUM_ROWS)]
        self.temperature = torch.tensor(heats, device=device)
        top_k, top_p, min_p = zip(*FILTERS, strict=True)
        self.filters = (
            torch.tensor(top_k, device=device),
            torch.tensor(top_p, device=device),
            torch.tensor(min_p, device=device),
        )

    def kept(self) -> torch.Tensor:
        """Which tokens the kernel's thresholds keep."""
        found = find_thresholds(self.logits, self.rows, self.temperature, *self.filters)
        scores = (self.logits.float() - found.peak[:, None]) / self.temperature[:, None]
        ids = torch.arange(scores.shape[-1], device=scores.device)
        equal = (scores == found.cut[:, None]) & (ids <= found.last_id[:, None])
        return (scores > found.cut[:, None]) | equal

    def expected(self) -> torch.Tensor:
        """Scores after the sampler's filters, -inf where not kept."""
        top_k, top_p, min_p = self.filters
        scores = apply_temperature(self.logits.float(), self.temperature)
        return apply_min_p(apply_top_k_top_p(scores, top_k, top_p), min_p)

    def check(self) -> None:
        kept, expected = self.kept(), self.expected() > -torch.inf
        sizes = kept.sum(-1)
        for index, (top_k, top_p, _) in enumerate(FILTERS):
            if top_p == 1:
                assert torch.equal(kept[index], expected[index]), FILTERS[index]
            elif not torch.equal(kept[index], expected[index]):
                # A sum of probabilities that all but equals p.
                assert abs(int(sizes[index]) - int(expected[index].sum())) <= 1
                assert (kept[index] != expected[index]).sum() == 1
            assert sizes[index] >= 1
            assert top_k == 0 or sizes[index] <= top_k


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [SEED])
@pytest.mark.parametrize("vocab_size", [97, 500])
def test_filters_keep_what_the_sampler_keeps(
    vocab_size: int, seed: int, dtype: torch.dtype, device: torch.device
) -> None:
    Filtered(seed, vocab_size, dtype, device).check()


@pytest.mark.parametrize("seed", [SEED])
def test_lowest_ids_are_kept_of_equal_tokens(seed: int, device: torch.device) -> None:
    batch = Filtered(seed, 150, torch.bfloat16, device)
    batch.logits = (batch.logits / 3).round()
    batch.check()
    batch.logits.fill_(-2.0)
    batch.check()
    assert batch.kept()[1].nonzero().flatten().tolist() == list(range(7))


@pytest.mark.parametrize("seed", [SEED])
def test_a_filter_may_keep_more_tokens_than_are_allowed(seed: int, device: torch.device) -> None:
    batch = Filtered(seed, 97, torch.float32, device)
    batch.logits[:, 3:] = -torch.inf
    finite = batch.logits > -torch.inf
    assert torch.equal(batch.kept() & finite, batch.expected() > -torch.inf)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [SEED])
def test_tokens_are_drawn_from_what_is_kept(seed: int, dtype: torch.dtype, device: torch.device) -> None:
    batch = Filtered(seed, 2500, dtype, device)
    batch.temperature[0] = 0.0
    positions = batch.draws.int32([5] * NUM_ROWS)
    seeds = torch.arange(NUM_ROWS, device=device) + seed
    token_ids, statuses = sample_filtered_rows(
        batch.logits, batch.rows, positions, batch.temperature, seeds, *batch.filters
    )
    assert statuses.tolist() == [1] * NUM_ROWS
    assert token_ids[0] == batch.logits[0].argmax()
    scores = batch.expected() + gumbel_noise(seeds, positions.long(), 2500)
    for index in range(1, NUM_ROWS):
        assert scores[index].max() - scores[index, token_ids[index]] < 1e-4
