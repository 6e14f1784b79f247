"""The device-resident batch as plans change it: starts, appended blocks and lengths, against a plain list a row."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from small_models import gpu

from executor_svc.batch import BatchState
from executor_svc.plan import RowSampling, StartRow, StepPlan
from executor_svc.runner import RunnerLimits

LIMITS = RunnerLimits(
    num_blocks=500,
    block_size=4,
    max_num_seqs=9,
    max_model_len=60,
    max_num_batched_tokens=64,
    max_num_decode_steps=4,
    max_plans_in_flight=2,
    vocab_size=50,
)


def ints(values: Any) -> np.ndarray:
    return np.array(list(values), np.int32)


class Rows:
    """What every row must hold after the plans so far."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.tokens: dict[int, list[int]] = {}
        self.tables: dict[int, list[int]] = {}
        self.lengths: dict[int, int] = {}
        self.samplings: dict[int, RowSampling] = {}

    def next_plan(self, step_id: int) -> StepPlan:
        """Starts some rows, and appends blocks to some, several to one row at times."""
        rng, starts = self.rng, []
        for row in rng.sample(range(LIMITS.max_num_seqs), rng.randint(0, 4)):
            self.tokens[row] = [rng.randrange(50) for _ in range(rng.randint(1, 59))]
            self.tables[row] = [rng.randrange(1, 500) for _ in range(rng.randint(0, 9))]
            self.lengths[row] = 4 * rng.randint(0, 3)
            self.samplings[row] = RowSampling(
                temperature=rng.choice([0.0, 0.5, 2.0]),
                top_k=rng.randint(0, 5),
                top_p=rng.choice([0.5, 1.0]),
                presence_penalty=rng.choice([0.0, 1.0]),
            )
            starts.append(
                StartRow(
                    row=row,
                    token_ids=ints(self.tokens[row]),
                    num_prompt_tokens=1,
                    num_computed_tokens=self.lengths[row],
                    block_table=ints(self.tables[row]),
                    sampling=self.samplings[row],
                    seed=2**64 - 1 - row,
                )
            )
        appended = [
            (rng.choice(list(self.tables)), rng.randrange(1, 500))
            for _ in range(rng.randint(0, 5))
            if self.tables
        ]
        appended = [(row, block) for row, block in appended if len(self.tables[row]) < 10]
        for row, block in appended:
            self.tables[row].append(block)
        rows, blocks = ints(row for row, _ in appended), ints(block for _, block in appended)
        return StepPlan(step_id, ints([]), tuple(starts), rows, blocks, (), ints([]), ints([]), 1, ())

    def check(self, state: BatchState) -> None:
        for row, tokens in self.tokens.items():
            assert state.token_ids[row, : len(tokens)].tolist() == tokens
            assert state.block_tables[row, : len(self.tables[row])].tolist() == self.tables[row]
            assert int(state.lengths[row]) == self.lengths[row]
            sampling = self.samplings[row]
            for name in ("temperature", "top_k", "top_p", "presence_penalty", "min_p", "repetition_penalty"):
                assert float(getattr(state.params, name)[row]) == getattr(sampling, name)
            assert int(state.params.seeds[row]) == -1 - row
            if sampling.presence_penalty:
                assert state.counts is not None
                expected = torch.bincount(torch.tensor(tokens[1:], dtype=torch.int64), minlength=50)
                assert state.counts.output[row].tolist() == expected.tolist()
                assert state.counts.seen[row].nonzero()[:, 0].tolist() == sorted(set(tokens))
        assert not state.token_ids[state.dummy_row].any()
        assert not state.block_tables[state.dummy_row].any()


def check_plans(seed: int, device: str) -> None:
    state, rows = BatchState(LIMITS, torch.device(device)), Rows(seed)
    for step_id in range(1, 30):
        state.apply(rows.next_plan(step_id))
        rows.check(state)


@pytest.mark.parametrize("seed", range(8))
def test_rows_hold_what_plans_say(seed: int) -> None:
    check_plans(seed, "cpu")


@gpu
@pytest.mark.parametrize("seed", range(8))
def test_rows_on_cuda_hold_what_plans_say(seed: int) -> None:
    check_plans(seed, "cuda")


def test_segments_advance_their_rows_and_never_the_dummy_row() -> None:
    state = BatchState(LIMITS, torch.device("cpu"))
    segments = ints([3, 5, 9, 9]), ints([1, 7, 1, 4])
    for times in range(1, 4):
        state.advance(*(torch.tensor(part) for part in segments))
        assert state.lengths.tolist() == [0, 0, 0, times, 0, 7 * times, 0, 0, 0, 0]
