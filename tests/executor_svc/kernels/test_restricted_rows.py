"""Rows that masks and filters restrict, sampled by the kernels beside rows of other kinds, against the sampler."""

import math
import random
from typing import cast

import numpy as np
import pytest
import torch
from kernel_checks import new_seed

from executor_svc.batch import BatchState
from executor_svc.kv_cache import KVCache
from executor_svc.plan import RowMask, RowSampling, RowStatus, StartRow, StepPlan
from executor_svc.runner import RunnerLimits
from executor_svc.sampler import SamplingRows, choose, sample

pytest.importorskip("triton", reason="the kernels need Triton")

from executor_svc.kernels.ops import TritonOps

# Numpy, which the interpreter computes with, warns of infinities.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"
)
SEED = new_seed()
VOCAB_SIZE = 203
KINDS = [
    RowSampling(),
    RowSampling(temperature=0.8),
    RowSampling(temperature=1.2, top_k=7),
    RowSampling(temperature=0.9, top_p=0.8, min_p=0.01),
    RowSampling(temperature=1.0, presence_penalty=0.5),
    RowSampling(report_gap=True),
]
LIMITS = RunnerLimits(4, 4, 2 * len(KINDS), 64, 64, 1, 1, VOCAB_SIZE)
NO_INTS = np.empty(0, np.int32)


def started(device: torch.device) -> BatchState:
    """Two rows of each kind."""
    state, known = BatchState(LIMITS, device), np.array([5, 9], np.int32)
    starts = tuple(
        StartRow(row, known, 2, 0, np.array([1], np.int32), KINDS[row % len(KINDS)], seed=row)
        for row in range(LIMITS.max_num_seqs)
    )
    state.apply(StepPlan(1, NO_INTS, starts, NO_INTS, NO_INTS, (), NO_INTS, NO_INTS, 1, ()))
    return state


@pytest.mark.parametrize("seed", [SEED])
def test_the_kernels_sample_what_the_sampler_does(seed: int, device: torch.device) -> None:
    rng, state = random.Random(seed), started(device)
    ops = TritonOps(cast(KVCache, None))  # sampling has no use for it
    rows = rng.sample(range(LIMITS.max_num_seqs), LIMITS.max_num_seqs)
    # The upper half of the rows is guided, one of them out of bounds, and one of each half has a worthless logit.
    guided = [row for row in rows if row >= len(KINDS)]
    masks = {}
    for row in guided:
        allowed = np.zeros(VOCAB_SIZE, np.bool_)
        allowed[rng.sample(range(VOCAB_SIZE), rng.choice([1, 3, 100, 200]))] = True
        masks[row] = RowMask.of(row, allowed).allowed_bits
    masks[guided[0]] = RowMask.of(guided[0], np.zeros(VOCAB_SIZE, np.bool_)).allowed_bits
    batch = SamplingRows(state, np.array(rows, np.int32), np.full(len(rows), 2, np.int32), masks)
    logits = torch.randn(len(rows), VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)).to(device) * 3
    worthless = {
        guided[1]: math.nan,
        guided[2]: math.inf,
        next(row for row in rows if row not in masks): math.nan,
    }
    for row, value in worthless.items():
        logits[rows.index(row), rng.randrange(VOCAB_SIZE)] = value
    before = logits.clone()
    ours, expected = choose(logits, batch, ops), sample(logits, batch)
    assert torch.equal(logits.nan_to_num(), before.nan_to_num())  # log-probabilities are of the raw logits
    assert ours.results.tolist() == expected.results.tolist()
    statuses = dict(zip(rows, ours.statuses.tolist(), strict=True))
    assert statuses[guided[0]] == RowStatus.NO_TOKEN_ALLOWED
    assert all(statuses[row] == RowStatus.NON_FINITE_LOGITS for row in worthless)
    assert sum(status == RowStatus.OK for status in statuses.values()) == len(rows) - 4
