"""Small steps take one thread, others all; the runner does as it is told."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_harness import Hand, make_runner, random_tokens, save_checkpoint

from executor_svc.cpu_threads import StepThreads
from executor_svc.plan import Prefill, Step, StepPlan

NO_ROWS = np.empty(0, np.int32)
MIB = 2**20
ALL = 3


@pytest.fixture(autouse=True)
def _three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(ALL)
    yield
    torch.set_num_threads(before)


def step(contexts: list[int], prefills: list[tuple[int, int]] | None = None) -> Step:
    """Decode rows at `contexts`, and prefills of (first position, tokens)."""
    rows = np.arange(len(contexts), dtype=np.int32)
    runs = tuple(
        Prefill(len(rows) + index, first, count, True) for index, (first, count) in enumerate(prefills or [])
    )
    plan = StepPlan(1, NO_ROWS, (), NO_ROWS, NO_ROWS, runs, rows, np.ones_like(rows), 1, ())
    return Step(plan, np.array(contexts, np.int32))


@pytest.mark.parametrize(
    ("num_threads", "weights_mib", "contexts", "prefills"),
    [
        (1, 16, [0], []),
        (1, 48, [0] * 16, []),
        (1, 16, [1000] * 16, []),
        (1, 16, [], [(0, 16)]),
        (1, 16, [0] * 8, [(1000, 8)]),
        (ALL, 16, [0] * 17, []),
        (ALL, 16, [], [(0, 17)]),
        (ALL, 16, [3000] * 16, []),
        (ALL, 16, [0], [(48_000, 1)]),
        (ALL, 49, [0], []),
    ],
)
def test_one_thread_computes_what_is_small_in_every_way(
    num_threads: int, weights_mib: int, contexts: list[int], prefills: list[tuple[int, int]]
) -> None:
    weights = [torch.empty(weights_mib * MIB, dtype=torch.uint8)]
    assert StepThreads(weights, MIB // 1000).of(step(contexts, prefills)) == num_threads


def test_the_runner_takes_the_threads_of_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, "Qwen3")
    runner = make_runner(tmp_path)
    seen: list[int] = []
    run = runner.model_runner.run

    def note_and_run(*given: Any) -> Any:
        seen.append(torch.get_num_threads())
        return run(*given)

    monkeypatch.setattr(runner.model_runner, "run", note_and_run)
    hand = Hand(runner)
    hand.start(0, random_tokens(hand.rng, 40))
    hand.prefill(0)
    hand.run()
    hand.decode(0)
    hand.run()
    runner.close()
    assert seen == [ALL, 1]
