"""Memory on each rank's device that all ranks of a host reach: sums and gathers of what is small, without NCCL.

Made of torch's symmetric memory, over NVLink or PCIe, and without multicast. All of it may be captured in a CUDA graph.
Every rank gets the same bits: a sum is made in the order of the ranks, by all of them (one-shot) or by one (two-shot).
"""

import importlib.util
from enum import Enum
from typing import Any

import structlog
import torch
import torch.distributed as dist

from executor_svc.parallel.place import Place

AUTO, NCCL = "auto", "nccl"


class Way(Enum):
    """How ranks sum a message."""

    ONE_SHOT = "one-shot"
    """Each reads all: the fewest meetings."""
    TWO_SHOT = "two-shot"
    """Each sums a part, and then reads all parts: the fewest bytes."""
    GROUP = NCCL
    """By the process group."""


TWO_SHOT_SIZES = (2, 4, 8)
"""How many ranks two-shot is made for."""
# Of `auto`: the largest messages that go each way, by number of ranks; larger ones go by the group. Of two ranks as
# benchmarks/all_reduce.py measured over NVLink (docs/tensor-parallel.md): there one-shot pays only with RMSNorm in its
# kernel, measured to 128 KiB. Of more ranks by experiments/allreduce_model.py, and by where NCCL's many channels are
# assumed to overtake two-shot.
_WAYS = {
    2: ((2**20, Way.GROUP), (2**23, Way.TWO_SHOT)),
    4: ((2**20, Way.ONE_SHOT), (2**22, Way.TWO_SHOT)),
    8: ((2**18, Way.ONE_SHOT), (2**22, Way.TWO_SHOT)),
}
_OTHER_WAYS = ((2**18, Way.ONE_SHOT),)
_FUSED_BYTES = {2: 2**20, 4: 2**20}
_OTHER_FUSED_BYTES = 2**18


def choose_way(mode: str, size: int, num_bytes: int) -> Way:
    """How `size` ranks sum so many bytes, by `--all-reduce`."""
    if mode != AUTO:
        return Way(mode)
    return next((way for limit, way in _WAYS.get(size, _OTHER_WAYS) if num_bytes <= limit), Way.GROUP)


def chooses_fused(mode: str, size: int, num_bytes: int) -> bool:
    """Whether `size` ranks sum so many bytes in the kernel of the RMSNorm behind it, by `--all-reduce`."""
    limit = _FUSED_BYTES.get(size, _OTHER_FUSED_BYTES)
    return num_bytes <= limit if mode == AUTO else Way(mode) is Way.ONE_SHOT


def largest_message(mode: str, size: int, num_bytes: int) -> int:
    """The most bytes that ranks sum otherwise than by the group, where the largest message has `num_bytes`."""
    if mode != AUTO:
        return 0 if mode == NCCL else num_bytes
    return min(num_bytes, max(limit for limit, _ in _WAYS.get(size, _OTHER_WAYS)))


def check_mode(mode: str, place: Place, device: torch.device) -> None:
    """ValueError, naming the flag, where what `--all-reduce` asks for cannot be had."""
    lacking = _lacking(place, device)
    if mode not in (AUTO, NCCL) and lacking is not None:
        raise ValueError(f"--all-reduce: {mode} {lacking}")
    if mode == Way.TWO_SHOT.value and place.size not in TWO_SHOT_SIZES:
        raise ValueError(f"--all-reduce: two-shot needs {TWO_SHOT_SIZES} ranks, not {place.size}")


def can_share(place: Place, device: torch.device) -> bool:
    """Whether this rank can reach the memory of all others."""
    return _lacking(place, device) is None


def _lacking(place: Place, device: torch.device) -> str | None:
    if device.type != "cuda":
        return "needs CUDA devices"
    if importlib.util.find_spec("triton") is None:
        return "needs Triton"
    if place.local_size != place.size:
        return "needs all ranks on one host"
    others = [] if place.overlapping else [rank for rank in range(place.size) if rank != place.local_rank]
    if not all(torch.cuda.can_device_access_peer(device, torch.device("cuda", other)) for other in others):
        return "needs devices that reach each other's memory"
    return None


class PeerMemory:
    """A buffer of every rank. It is used on one stream; every rank does the same with it, in the same order."""

    def __init__(self, mode: str, place: Place, device: torch.device, num_bytes: int) -> None:
        """For messages of at most `num_bytes`; all ranks make it at the same time."""
        # Only here: the CPU path must work without Triton, and none but this waits for torch's own to be imported.
        import torch.distributed._symmetric_memory as symm_mem

        from executor_svc.kernels import peer_memory

        self._kernels, self._mode, self._size = peer_memory, mode, place.size
        self._num_bytes = -(-max(num_bytes, 4 * peer_memory.MAX_GATHERED) // 16) * 16
        num_meetings = peer_memory.MAX_PROGRAMS
        self._memory = symm_mem.empty(self._num_bytes + 8 * num_meetings, dtype=torch.uint8, device=device)
        assert dist.group.WORLD is not None
        self._group = dist.group.WORLD.group_name
        handle = symm_mem.rendezvous(self._memory, self._group)
        self._memory.zero_()
        handle.barrier()
        torch.cuda.synchronize(device)  # other streams may use it now
        arrivals = _buffers(handle, torch.int64, self._num_bytes // 8, num_meetings)
        expected = torch.zeros(num_meetings, dtype=torch.int64, device=device)
        self._meeting = peer_memory.Meeting(place.rank, arrivals, expected)
        self._buffers = {
            dtype: _buffers(handle, dtype, 0, self._num_bytes // dtype.itemsize)
            for dtype in (torch.bfloat16, torch.float32, torch.int32)
        }
        structlog.get_logger().info("peer_memory", all_reduce=mode, bytes=self._num_bytes)

    def way(self, x: torch.Tensor) -> Way:
        """How `x` is summed."""
        return choose_way(self._mode, self._size, x.nbytes) if self._holds(x) else Way.GROUP

    def fuses(self, x: torch.Tensor) -> bool:
        """Whether `x`, [n, size], goes through `sum_add_rms_norm`."""
        is_small = len(x) <= self._kernels.MAX_PROGRAMS and self._holds(x)
        return is_small and chooses_fused(self._mode, self._size, x.nbytes)

    def sum(self, x: torch.Tensor, way: Way) -> torch.Tensor:
        """The sum of all ranks' `x`, which may be overwritten, one-shot or two-shot."""
        if not x.numel():
            return x
        buffer = self._memory[: x.nbytes].view(x.dtype).view(x.shape)
        if way is Way.ONE_SHOT:
            summed: torch.Tensor = torch.ops.symm_mem.one_shot_all_reduce_copy(buffer, x, "sum", self._group)
            return summed
        buffer.copy_(x)
        torch.ops.symm_mem.two_shot_all_reduce_out(buffer, "sum", self._group, x)
        return x

    def sum_add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm(sum of all ranks' x + residual), that sum): see the kernel."""
        return self._kernels.sum_add_rms_norm(x, residual, weight, eps, self._buffers[x.dtype], self._meeting)

    def gathers(self, x: torch.Tensor) -> bool:
        """Whether `gather` takes it."""
        return x.dtype == torch.int32 and x.numel() <= self._kernels.MAX_GATHERED

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """All ranks' `x`, by rank: [size, *x.shape]."""
        return self._kernels.gather(x, self._buffers[x.dtype], self._meeting)

    def _holds(self, x: torch.Tensor) -> bool:
        return x.nbytes <= self._num_bytes and x.dtype in (torch.bfloat16, torch.float32)


def _buffers(handle: Any, dtype: torch.dtype, offset: int, count: int) -> tuple[torch.Tensor, ...]:
    """Of every rank's memory `count` elements behind the first `offset`."""
    return tuple(handle.get_buffer(rank, (count,), dtype, offset) for rank in range(handle.world_size))
