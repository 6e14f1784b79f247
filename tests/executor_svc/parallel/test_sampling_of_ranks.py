"""Ranks that tell each other only their winners choose the token that one process chooses from all logits."""

import math
from collections.abc import Callable

import pytest
import torch

from executor_svc.layers.ops import ReferenceOps
from executor_svc.parallel.ranks import Ranks
from executor_svc.parallel.shard import Shard
from executor_svc.plan import RowStatus

Sample = Callable[[Ranks, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

NUM_ROWS = 6
ROWS = torch.tensor([5, 3, 0, 1, 4, 2], dtype=torch.int32)
POSITIONS = torch.tensor([9, 1, 70_000, 4, 12, 8], dtype=torch.int32)
TEMPERATURE = torch.tensor([0.0, 1.0, 0.3, 1e-30, 0.0, 2.0])
SEEDS = torch.tensor([1, -5, 2**62, 7, 8, 9])


class _Told(Exception):
    pass


class _Recording(Ranks):
    def gather(self, x: torch.Tensor) -> torch.Tensor:
        raise _Told(x.clone())


class _Hearing(Ranks):
    told: torch.Tensor

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        assert torch.equal(x, self.told[self.shard.rank])
        return self.told


def by_reference(ranks: Ranks, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    ops = ReferenceOps(None, ranks)  # type: ignore[arg-type]
    return ops.sample_rows(logits, ROWS, POSITIONS, TEMPERATURE, SEEDS)


def by_kernels(ranks: Ranks, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    sampling = pytest.importorskip("executor_svc.kernels.sampling")
    if ranks.alone:
        ids, statuses = sampling.sample_rows(logits, ROWS, POSITIONS, TEMPERATURE, SEEDS)
    else:
        ids, statuses = sampling.sample_rows_of_ranks(ranks, logits, ROWS, POSITIONS, TEMPERATURE, SEEDS)
    return ids, statuses


def together(sample: Sample, logits: torch.Tensor, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What each of `size` ranks samples of its own columns."""
    vocab_size = logits.shape[1]
    shards = [Shard(rank, size) for rank in range(size)]
    parts = [logits[:, shard.vocabulary(vocab_size).runs[0]].contiguous() for shard in shards]
    told = []
    for shard, part in zip(shards, parts, strict=True):
        with pytest.raises(_Told) as caught:
            sample(_Recording(shard, vocab_size), part)
        told.append(caught.value.args[0])
    results = []
    for shard, part in zip(shards, parts, strict=True):
        ranks = _Hearing(shard, vocab_size)
        ranks.told = torch.stack(told)
        results.append(sample(ranks, part))
    return results


@pytest.mark.parametrize("sample", [by_reference, by_kernels])
@pytest.mark.parametrize(("vocab_size", "size"), [(131, 2), (131, 4), (5003, 2), (9000, 3)])
def test_all_ranks_choose_the_token_that_one_process_does(sample: Sample, vocab_size: int, size: int) -> None:
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(NUM_ROWS, vocab_size, generator=generator) * 3
        logits[0, [7, vocab_size - 1]] = 50.0  # equals rank by id, across ranks too
        logits[1, : vocab_size // 2] = -math.inf
        expected = sample(Ranks(Shard(), vocab_size), logits)
        for ids, statuses in together(sample, logits, size):
            assert torch.equal(ids, expected[0])
            assert torch.equal(statuses, expected[1])


@pytest.mark.parametrize("sample", [by_reference, by_kernels])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("column", [3, 130])
def test_a_row_with_a_bad_logit_on_any_rank_fails_alone_on_all(
    sample: Sample, poison: float, column: int
) -> None:
    logits = torch.randn(NUM_ROWS, 131, generator=torch.Generator().manual_seed(0))
    expected, _ = sample(Ranks(Shard(), 131), logits)
    logits[2, column] = poison
    for ids, statuses in together(sample, logits, 2):
        good = torch.arange(NUM_ROWS) != 2
        assert torch.equal(ids[good], expected[good])
        assert (statuses[good] == RowStatus.OK).all()
        assert (int(ids[2]), int(statuses[2])) == (0, RowStatus.NON_FINITE_LOGITS)
