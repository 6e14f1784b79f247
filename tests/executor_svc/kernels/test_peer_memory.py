"""Sums and gathers over buffers of ranks: the arithmetic, all ranks in one process, where nobody waits for anybody."""

import pytest
import torch
from kernel_checks import DTYPES, Draws, assert_near, new_seed

from executor_svc.layers.norm import RMSNorm

pytest.importorskip("triton", reason="the kernels need Triton")

from executor_svc.kernels.peer_memory import MAX_PROGRAMS, Meeting, gather, sum_add_rms_norm

SEED = new_seed()
EPS = 1e-6
LONG_AGO = 2**40


def open_meetings(num_ranks: int, device: torch.device) -> list[Meeting]:
    """One of each rank, at which all others have been more often than anybody will ask."""
    arrivals = tuple(torch.full((MAX_PROGRAMS,), LONG_AGO, device=device) for _ in range(num_ranks))
    none = torch.zeros(MAX_PROGRAMS, dtype=torch.int64, device=device)
    return [Meeting(rank, arrivals, none.clone()) for rank in range(num_ranks)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_ranks", [2, 3, 4, 8])
@pytest.mark.parametrize("seed", [SEED])
def test_every_rank_gets_the_norm_of_the_sum_in_the_same_bits(
    seed: int, num_ranks: int, dtype: torch.dtype, device: torch.device
) -> None:
    draws = Draws(seed, dtype, device)
    num_tokens, size = draws.choices.randrange(1, 6), draws.choices.choice([48, 96, 1000, 1536])
    parts = [draws.normal(num_tokens, size, scale=3.0) for _ in range(num_ranks)]
    weight, residual = draws.normal(size), draws.choices.choice([None, draws.normal(num_tokens, size)])
    buffers = [draws.poisoned(num_tokens * size + 7) for _ in range(num_ranks)]
    for rank in range(num_ranks):
        buffers[rank][: num_tokens * size] = parts[rank].flatten()
        buffers[rank][: num_tokens * size // 2] = torch.nan  # what the rank itself has yet to write

    def run(meeting: Meeting) -> tuple[torch.Tensor, torch.Tensor]:
        return sum_add_rms_norm(parts[meeting.rank], residual, weight, EPS, buffers, meeting)

    for meeting in open_meetings(num_ranks, device):
        run(meeting)
    results = [run(meeting) for meeting in open_meetings(num_ranks, device)]
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part.float()
    expected = total.to(dtype) if residual is None else total.to(dtype) + residual
    norm = RMSNorm(size, EPS, dtype=dtype, device=device)
    norm.weight.copy_(weight)
    for normed, summed in results:
        assert torch.equal(summed, expected)
        assert torch.equal(normed, results[0][0])
        assert_near(normed, norm(expected))
    assert all(buffer[num_tokens * size :].isnan().all() for buffer in buffers)


@pytest.mark.parametrize("num_ranks", [2, 3, 8])
@pytest.mark.parametrize("shape", [(1,), (3, 5, 2), (3, 2048), (3, 7, 131)])
def test_every_rank_gathers_what_all_have(
    num_ranks: int, shape: tuple[int, ...], device: torch.device
) -> None:
    draws = Draws(SEED, torch.float32, device)
    parts = [draws.int32(torch.randint(-(2**31), 2**31 - 1, shape)) for _ in range(num_ranks)]
    count = parts[0].numel()
    buffers = [torch.zeros(count + 3, dtype=torch.int32, device=device) for _ in range(num_ranks)]
    for meeting in open_meetings(num_ranks, device):
        gather(parts[meeting.rank], buffers, meeting)
    for meeting in open_meetings(num_ranks, device):
        assert torch.equal(gather(parts[meeting.rank], buffers, meeting), torch.stack(parts))
    assert all(not buffer[count:].any() for buffer in buffers)


def test_a_rank_comes_to_all_others_twice_and_expects_all_others_twice(device: torch.device) -> None:
    draws = Draws(SEED, torch.float32, device)
    meetings, num_ranks = open_meetings(4, device), 4
    x, weight = draws.normal(3, 64), draws.normal(64)
    buffers = [draws.normal(3 * 64) for _ in range(num_ranks)]
    for times in (1, 2):
        sum_add_rms_norm(x, None, weight, EPS, buffers, meetings[2])
        for rank, counter in enumerate(meetings[2].arrivals):
            assert (counter[:3] - LONG_AGO == (0 if rank == 2 else 2 * times)).all()
            assert (counter[3:] == LONG_AGO).all()
        assert (meetings[2].expected[:3] == 2 * (num_ranks - 1) * times).all()
        assert not meetings[2].expected[3:].any()
