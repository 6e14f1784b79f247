"""What ranks on several GPUs take to sum a message, by its size: NCCL, one-shot and two-shot, beside the model.

    python benchmarks/all_reduce.py --ranks 2

Each way is replayed from a CUDA graph, as in a decode step, and checked first. `norm_us` is one-shot and then RMSNorm
with the residual; `fused_us` is both in one kernel. A figure is the slowest rank's, the median of rounds, in bfloat16.
`model_us` is the best way's by experiments/allreduce_model.py. Prints a table, then one JSON line.
"""

import argparse
import multiprocessing as mp
import sys
from collections.abc import Callable
from multiprocessing.connection import wait
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from benchmarks.report import print_json, print_table, rounded
from executor_svc.kernels.norm import add_rms_norm
from executor_svc.parallel.join import join_group, prepare_device
from executor_svc.parallel.leader import loopback_store
from executor_svc.parallel.peers import TWO_SHOT_SIZES, PeerMemory, Way
from executor_svc.parallel.place import Place
from experiments.allreduce_model import NVLINK_CLASS, all_reduce_seconds

_MOST_BYTES, _EPS = 2**26, 1e-6
_CALLS, _ROUNDS = 20, 11
_COLUMNS = (
    "tokens",
    "bytes",
    "nccl_us",
    "one-shot_us",
    "two-shot_us",
    "norm_us",
    "fused_us",
    "best",
    "model_us",
    "vs_model",
)

Compute = Callable[[], Any]


class Message:
    """One of this rank, bfloat16 of `shape`, [num_tokens, hidden_size], and every way to sum it."""

    def __init__(self, peers: PeerMemory, place: Place, device: torch.device, shape: tuple[int, int]) -> None:
        self._peers, self._place = peers, place
        self._x = torch.empty(shape, dtype=torch.bfloat16, device=device)
        self._residual, self._weight = torch.zeros_like(self._x), torch.ones_like(self._x[0])

    def sums(self) -> dict[str, Compute]:
        """By way; what each returns is the sum."""
        ways = [Way.ONE_SHOT] + [Way.TWO_SHOT] * (self._place.size in TWO_SHOT_SIZES)
        by_peers = {way.value: lambda way=way: self._peers.sum(self._x, way) for way in ways}
        return {Way.GROUP.value: self._by_group, **by_peers}

    def norms(self) -> dict[str, Compute]:
        """A sum and RMSNorm behind it, in two kernels and in one, where that is for messages like this."""
        found: dict[str, Compute] = {"norm": self._norm_behind}
        if self._peers.fuses(self._x):
            found["fused"] = self._fused
        return found

    def check(self) -> None:
        """AssertionError where a way gives another sum."""
        expected = self._place.size * (self._place.size + 1) / 2
        for way, compute in self.sums().items():
            self._x.fill_(self._place.rank + 1)
            assert (compute() == expected).all(), way

    def _by_group(self) -> torch.Tensor:
        dist.all_reduce(self._x)
        return self._x

    def _norm_behind(self) -> Any:
        summed = self._peers.sum(self._x, Way.ONE_SHOT)
        return add_rms_norm(summed, self._residual, self._weight, _EPS)

    def _fused(self) -> Any:
        return self._peers.sum_add_rms_norm(self._x, self._residual, self._weight, _EPS)


def microseconds(compute: Compute, device: torch.device) -> float:
    """A call's, of those that follow each other in a graph; all ranks get the slowest one's."""
    stream, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    torch.cuda.synchronize(device)
    with torch.cuda.stream(stream):
        compute()
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            for _ in range(_CALLS):
                compute()
        taken = []
        for _ in range(_ROUNDS + 1):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record(stream)
            graph.replay()
            end.record(stream)
            stream.synchronize()
            taken.append(begin.elapsed_time(end) * 1e3 / _CALLS)
    slowest = torch.tensor([median(taken[1:])], device=device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return float(slowest.item())


def measure(place: Place, device: torch.device, hidden_size: int) -> list[dict[str, Any]]:
    """A row for each number of tokens, on every rank."""
    peers = PeerMemory(Way.ONE_SHOT.value, place, device, _MOST_BYTES)
    rows, num_tokens = [], 1
    while (num_bytes := 2 * num_tokens * hidden_size) <= _MOST_BYTES:
        message = Message(peers, place, device, (num_tokens, hidden_size))
        message.check()
        sums = {way: microseconds(compute, device) for way, compute in message.sums().items()}
        norms = {name: microseconds(compute, device) for name, compute in message.norms().items()}
        best = min(sums, key=lambda way: sums[way])
        model = all_reduce_seconds(place.size, num_bytes, NVLINK_CLASS) * 1e6
        figures = {f"{name}_us": taken for name, taken in (sums | norms).items()}
        row = {"test": "all_reduce", "ranks": place.size, "tokens": num_tokens, "bytes": num_bytes, **figures}
        rows.append(rounded(row | {"best": best, "model_us": model, "vs_model": sums[best] / model}))
        num_tokens *= 2
    return rows


def run_rank(rank: int, size: int, port: int, hidden_size: int) -> None:
    """One process; rank 0 prints."""
    place, device = Place(rank, size, rank, size, "127.0.0.1"), torch.device("cuda", rank)
    prepare_device(device, place)
    join_group(TCPStore("127.0.0.1", port, size, is_master=False), place, device)
    rows = measure(place, device, hidden_size)
    if rank == 0:
        print_table(rows, _COLUMNS)
        print_json(rows)
    dist.barrier()
    dist.destroy_process_group()


def main() -> int:
    """Runs the command line; 2 where there are not so many GPUs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2, help="each on a GPU of its own (default %(default)s)")
    parser.add_argument(
        "--hidden-size", type=int, default=1024, metavar="N", help="numbers a token (default %(default)s)"
    )
    arguments = parser.parse_args()
    if arguments.hidden_size < 8 or arguments.hidden_size % 8:
        parser.error("--hidden-size: must be a multiple of 8")
    if not 2 <= arguments.ranks <= torch.cuda.device_count():
        parser.error(f"--ranks: must be from 2 to the number of GPUs, {torch.cuda.device_count()}")
    store, port = loopback_store(arguments.ranks)
    context = mp.get_context("spawn")
    processes = [
        context.Process(
            target=run_rank, args=(rank, arguments.ranks, port, arguments.hidden_size), daemon=True
        )
        for rank in range(arguments.ranks)
    ]
    for process in processes:
        process.start()
    while all(process.exitcode is None for process in processes):
        wait([process.sentinel for process in processes])
    # Others wait for one that failed, and end with this process.
    failed = any(process.exitcode for process in processes)
    for process in processes:
        if not failed:
            process.join()
    del store
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
