"""Small steps leave a core to the scheduler, others take all."""

import numpy as np
import pytest
import torch

from executor_svc.cpu_threads import StepThreads
from executor_svc.plan import Prefill, Step, StepPlan

NO_ROWS = np.empty(0, np.int32)
MIB = 2**20


def step(contexts: list[int], prefills: list[tuple[int, int]] | None = None) -> Step:
    """Decode rows at `contexts`, and prefills of (first position, tokens)."""
    rows = np.arange(len(contexts), dtype=np.int32)
    runs = tuple(
        Prefill(len(rows) + index, first, count, True) for index, (first, count) in enumerate(prefills or [])
    )
    plan = StepPlan(1, NO_ROWS, (), NO_ROWS, NO_ROWS, runs, rows, np.ones_like(rows), 1, ())
    return Step(plan, np.array(contexts, np.int32))


@pytest.fixture
def all_threads() -> int:
    return torch.get_num_threads()


@pytest.mark.parametrize(
    ("small", "weights_mib", "contexts", "prefills"),
    [
        (True, 16, [0], []),
        (True, 16, [100] * 64, []),
        (True, 16, [], [(0, 64)]),
        (True, 16, [0] * 32, [(1000, 32)]),
        (False, 16, [0] * 65, []),
        (False, 16, [], [(0, 65)]),
        (False, 16, [3000] * 16, []),
        (False, 16, [0], [(48_000, 1)]),
        (False, 65, [0], []),
    ],
)
def test_a_core_is_left_by_steps_that_are_small_in_every_way(
    small: bool, weights_mib: int, contexts: list[int], prefills: list[tuple[int, int]], all_threads: int
) -> None:
    threads = StepThreads([torch.empty(weights_mib * MIB, dtype=torch.uint8)], MIB // 1000)
    assert threads.of(step(contexts, prefills)) == (max(1, all_threads - 1) if small else all_threads)


def test_one_thread_is_the_least() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert StepThreads([], 1).of(step([0])) == 1
        torch.set_num_threads(3)
        assert StepThreads([], 1).of(step([0])) == 2
    finally:
        torch.set_num_threads(before)
