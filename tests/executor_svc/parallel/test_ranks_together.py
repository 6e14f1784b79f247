"""What ranks do together gives all of them the same bits: on CPUs by gloo, on CUDA over memory of each other, and NCCL.

On CUDA ranks that have no device each share one, and take turns on it.
"""

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rank_processes import run_ranks
from small_models import gpu

from executor_svc.parallel.peers import PeerMemory, Way
from executor_svc.parallel.place import Place
from executor_svc.parallel.ranks import Ranks
from executor_svc.parallel.shard import Shard

pytest.importorskip("triton", reason="ranks on CUDA need Triton")

from executor_svc.kernels.norm import add_rms_norm

IS_SLOW_WANTED = bool(os.environ.get("NANOSERVE_TEST_SLOW"))
VOCAB_SIZE = 131
NUM_ROUNDS = {2: 100, 4: 5}
NUM_REPLAYS = {2: 50, 4: 5}
"""By ranks: on one device each meeting of them costs every rank a turn, and so seconds where there are many."""
EPS = 1e-6
MOST_BYTES = 2**21


def parts_of(rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype, size: int) -> list[torch.Tensor]:
    """What each rank has, alike on all ranks."""
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    return [(torch.randn(shape, generator=generator) * 3).to(dtype) for _ in range(size)]


def total_of(parts: list[torch.Tensor]) -> torch.Tensor:
    """float32, in the order of the ranks."""
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part.float()
    return total


def check_sum(summed: torch.Tensor, parts: list[torch.Tensor]) -> None:
    """Rounded after each addition at worst."""
    bound = 2.0**-8 if summed.dtype == torch.bfloat16 else 2.0**-23
    size = torch.stack([part.float().abs() for part in parts]).sum(0)
    assert ((summed.cpu().float() - total_of(parts)).abs() <= len(parts) * bound * size).all()


def work_on_cpu(place: Place, device: torch.device) -> list[torch.Tensor]:
    ranks, rng = Ranks(Shard(place.rank, place.size), VOCAB_SIZE), random.Random(5)
    parts = parts_of(rng, (7, 96), torch.float32, place.size)
    summed = ranks.sum(parts[place.rank].clone())
    check_sum(summed, parts)
    logits = torch.randn(5, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    own = ranks.shard.vocabulary(VOCAB_SIZE).runs[0]
    assert torch.equal(ranks.full_logits(logits[:, own].contiguous()), logits)
    assert torch.equal(ranks.agree(torch.full((2, 3), place.rank, dtype=torch.int32)), torch.zeros(2, 3))
    assert ranks.smallest(7 - place.rank, device) == 7 - (place.size - 1)
    return [summed]


def test_ranks_on_cpus_have_the_same_sums_and_rank_0_decides() -> None:
    for others in zip(*run_ranks(work_on_cpu, 2, "cpu"), strict=True):
        assert all(torch.equal(other, others[0]) for other in others)


def work_in_rounds(place: Place, device: torch.device) -> list[torch.Tensor]:
    """Sums of random shapes in every way, with RMSNorm behind some, and gathers."""
    rng, results = random.Random(7), []
    peers = PeerMemory("auto", place, device, MOST_BYTES)
    for _ in range(NUM_ROUNDS[place.size]):
        dtype = rng.choice([torch.bfloat16, torch.float32])
        num_tokens, hidden_size = rng.randint(1, 64), rng.choice([64, 896, 1024, 2048, 5120])
        parts = parts_of(rng, (num_tokens, hidden_size), dtype, place.size)
        mine, way = parts[place.rank].to(device), rng.choice([Way.ONE_SHOT, Way.TWO_SHOT, None])
        if way is not None:
            summed = peers.sum(mine, way)
            check_sum(summed, parts)
        else:
            residual, weight = (part.to(device) for part in parts_of(rng, mine.shape, dtype, 2))
            normed, summed = peers.sum_add_rms_norm(mine, residual, weight[0], EPS)
            expected = add_rms_norm(total_of(parts).to(dtype).to(device), residual, weight[0], EPS)
            assert torch.equal(summed, expected[1])
            torch.testing.assert_close(normed, expected[0])
            results.append(normed.cpu())
        results.append(summed.cpu())
        told = [torch.full((3, num_tokens, 2), 100 * rank + num_tokens) for rank in range(place.size)]
        gathered = peers.gather(told[place.rank].int().to(device))
        assert torch.equal(gathered.cpu(), torch.stack(told).int())
    return results


def work_in_a_graph(place: Place, device: torch.device) -> list[torch.Tensor]:
    """One graph of all ways, replayed with other numbers each time and nothing waited for in between."""
    rng, shape, dtype = random.Random(11), (13, 1024), torch.bfloat16
    peers, weight = (
        PeerMemory("auto", place, device, MOST_BYTES),
        torch.ones(1024, dtype=dtype, device=device),
    )
    x, told = (
        torch.zeros(shape, dtype=dtype, device=device),
        torch.zeros(3, 70, dtype=torch.int32, device=device),
    )

    def body() -> list[torch.Tensor]:
        one_shot = peers.sum(x.clone(), Way.ONE_SHOT)
        normed, summed = peers.sum_add_rms_norm(x, one_shot, weight, EPS)
        return [one_shot, normed, summed, peers.gather(told), peers.sum(x.clone(), Way.TWO_SHOT)]

    stream, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    torch.cuda.synchronize(device)
    with torch.cuda.stream(stream):
        body()
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            outputs = body()
    rounds = [parts_of(rng, shape, dtype, place.size) for _ in range(NUM_REPLAYS[place.size])]
    uploaded = [parts[place.rank].to(device) for parts in rounds]
    kept = []
    for number, mine in enumerate(uploaded):
        x.copy_(mine)
        told.fill_(1000 * place.rank + number)
        graph.replay()
        kept.append([output.clone() for output in outputs])
    for number, (parts, results) in enumerate(zip(rounds, kept, strict=True)):
        one_shot, normed, summed, gathered, two_shot = results
        check_sum(one_shot, parts)
        check_sum(two_shot, parts)
        expected = add_rms_norm(total_of(parts).to(dtype).to(device), one_shot, weight, EPS)
        torch.testing.assert_close(normed, expected[0])
        assert torch.equal(summed, expected[1])
        heads = torch.tensor([1000 * rank + number for rank in range(place.size)], device=device)
        assert (gathered == heads[:, None, None]).all()
    return [result.cpu() for results in kept for result in results]


@gpu
@pytest.mark.parametrize("work", [work_in_rounds, work_in_a_graph])
@pytest.mark.parametrize(
    "size",
    [
        2,
        pytest.param(
            4, marks=pytest.mark.skipif(not IS_SLOW_WANTED, reason="minutes: NANOSERVE_TEST_SLOW is not set")
        ),
    ],
)
def test_ranks_that_reach_each_others_memory_have_the_same_sums(
    work: Callable[[Place, torch.device], list[torch.Tensor]], size: int
) -> None:
    for others in zip(*run_ranks(work, size, "cuda"), strict=True):
        assert all(torch.equal(other, others[0]) for other in others)


def work_by_nccl(place: Place, device: torch.device) -> Any:
    """One rank alone is not asked to sum; NCCL does what a graph would have it do for several."""
    ranks = Ranks(Shard(place.rank, place.size), VOCAB_SIZE)
    x = torch.arange(4096, dtype=torch.float32, device=device)
    assert ranks.sum(x) is x
    dist.all_reduce(x)
    stream, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    torch.cuda.synchronize(device)
    with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        dist.all_reduce(x)
        gathered = ranks.gather(x)
    x.fill_(3.0)
    graph.replay()
    return dist.get_backend(), x.cpu(), gathered.cpu()


@gpu
def test_a_graph_holds_what_nccl_does() -> None:
    ((backend, x, gathered),) = run_ranks(work_by_nccl, 1, "cuda")
    assert backend == "nccl"
    assert torch.equal(x, torch.full((4096,), 3.0))
    assert torch.equal(gathered, x[None])
