"""What the device-resident batch gives a step, and what a step gives back, against loops over rows."""

import pytest
import torch
from kernel_checks import Draws, new_seed

pytest.importorskip("triton", reason="the kernels need Triton")

from executor_svc.kernels.inputs import advance_rows, gather_inputs

SEED = new_seed()
BLOCK_SIZE, MAX_BLOCKS = 16, 5
MAX_MODEL_LEN = BLOCK_SIZE * MAX_BLOCKS


class Rows:
    """A batch of `num_rows` rows at random lengths, and the dummy row after them."""

    def __init__(self, seed: int, num_rows: int, device: torch.device) -> None:
        self.draws = Draws(seed, torch.float32, device)
        self.num_rows = num_rows
        generator = self.draws.generator
        shape = num_rows + 1, MAX_MODEL_LEN
        self.token_ids = torch.randint(1, 9999, shape, generator=generator, dtype=torch.int32).to(device)
        shape = num_rows + 1, MAX_BLOCKS
        self.tables = torch.randint(1, 2**31 - 1, shape, generator=generator, dtype=torch.int32).to(device)
        self.lengths = torch.randint(0, 40, (num_rows + 1,), generator=generator, dtype=torch.int32).to(
            device
        )
        for tensor in (self.token_ids, self.tables, self.lengths):
            tensor[num_rows] = 0

    def some(self, count: int) -> list[int]:
        return self.draws.choices.sample(range(self.num_rows), count)


@pytest.mark.parametrize("seed", [SEED, SEED + 1])
def test_tokens_positions_and_slots_are_those_of_the_rows(seed: int, device: torch.device) -> None:
    batch = Rows(seed, 200, device)
    rows = [*batch.some(batch.draws.choices.randrange(1, 200)), 200, 200]
    offsets = [batch.draws.choices.randrange(40) if row < 200 else 0 for row in rows]
    ids, positions, slots = gather_inputs(
        batch.draws.int32(rows),
        batch.draws.int32(offsets),
        batch.lengths,
        batch.token_ids,
        batch.tables,
        BLOCK_SIZE,
    )
    expected = [int(batch.lengths[row]) + offset for row, offset in zip(rows, offsets, strict=True)]
    assert positions.tolist() == expected
    places = list(zip(rows, expected, strict=True))
    assert ids.tolist() == [int(batch.token_ids[place]) for place in places]
    assert slots.dtype == torch.int64
    assert slots.tolist() == [
        int(batch.tables[row, position // BLOCK_SIZE]) * BLOCK_SIZE + position % BLOCK_SIZE
        for row, position in places
    ]


@pytest.mark.parametrize("seed", [SEED, SEED + 1])
def test_decode_rows_advance_by_one_and_take_their_token(seed: int, device: torch.device) -> None:
    batch = Rows(seed, 200, device)
    rows = batch.some(150)
    lengths, token_ids = batch.lengths.clone(), batch.token_ids.clone()
    sampled = [batch.draws.choices.randrange(9999) for _ in range(152)]
    advance_rows(
        batch.draws.int32([*rows, 200, 200]), batch.draws.int32(sampled), batch.lengths, batch.token_ids
    )
    for row, token in zip(rows, sampled[:150], strict=True):
        lengths[row] += 1
        token_ids[row, lengths[row]] = token
    assert torch.equal(batch.lengths, lengths)
    assert torch.equal(batch.token_ids, token_ids)


@pytest.mark.parametrize("seed", [SEED, SEED + 1])
def test_prefill_segments_advance_by_their_tokens_and_only_some_take_one(
    seed: int, device: torch.device
) -> None:
    batch = Rows(seed, 9, device)
    rows, counts = batch.some(5), [batch.draws.choices.randrange(1, 30) for _ in range(5)]
    samples = [batch.draws.choices.random() < 0.5 for _ in range(5)]
    lengths, token_ids = batch.lengths.clone(), batch.token_ids.clone()
    starts = torch.tensor([0, *counts, 0, 0]).cumsum(0)
    advance_rows(
        batch.draws.int32([*rows, 9, 9]),
        batch.draws.int32([11, 12, 13, 14, 15, 16, 17]),
        batch.lengths,
        batch.token_ids,
        starts=batch.draws.int32(starts),
        samples=torch.tensor([*samples, True, False]).to(device),
    )
    for index, (row, count) in enumerate(zip(rows, counts, strict=True)):
        lengths[row] += count
        if samples[index]:
            token_ids[row, lengths[row]] = 11 + index
    assert torch.equal(batch.lengths, lengths)
    assert torch.equal(batch.token_ids, token_ids)


def test_a_row_that_computes_its_last_position_has_no_place_for_a_token(device: torch.device) -> None:
    batch = Rows(SEED, 2, device)
    batch.lengths[0] = MAX_MODEL_LEN - 1
    token_ids = batch.token_ids.clone()
    advance_rows(batch.draws.int32([0]), batch.draws.int32([5]), batch.lengths, batch.token_ids)
    assert batch.lengths[0] == MAX_MODEL_LEN
    assert torch.equal(batch.token_ids, token_ids)
