"""The ablation's ladder: one idea a step, from none of them to all."""

import argparse
from itertools import pairwise

import pytest

from experiments import ablation
from experiments.sizes import sizes_of

NUM_POOL_FLAGS = len(ablation.pool_flags(sizes_of("demo", "demo"), 1))


STUDIES = [("demo", "cpu"), ("demo", "cuda"), ("0.6b", "cuda"), ("14b", "cuda")]


def flags_of_cases(model: str, device: str) -> dict[str, frozenset[str]]:
    """By case: what is given beside the flags of the pool."""
    cases = ablation.cases(sizes_of(model, model), argparse.Namespace(device=device))
    return {
        case.name: frozenset((*case.executor_flags[NUM_POOL_FLAGS:], *case.scheduler_flags)) for case in cases
    }


@pytest.mark.parametrize(("model", "device"), STUDIES)
def test_each_step_of_the_ladder_ends_one_flag_and_the_last_has_none(model: str, device: str) -> None:
    flags = flags_of_cases(model, device)
    ladder = [given for name, given in flags.items() if not name.startswith("without ")]
    assert len(set(ladder)) == len(ladder)
    for before, after in pairwise(ladder):
        assert len(before - after) == 1
        assert after - before <= {"--batching=static"}  # which takes the place of naive
    assert ladder[-1] == frozenset()


@pytest.mark.parametrize(("model", "device"), STUDIES)
def test_every_switch_is_taken_away_alone(model: str, device: str) -> None:
    flags = flags_of_cases(model, device)
    alone = [given for name, given in flags.items() if name.startswith("without ")]
    assert all(len(given) == 1 for given in alone)
    assert frozenset().union(*alone) == flags["naive, no KV cache"] - set(ablation.NAIVEST) | {
        "--batching=static"
    }
