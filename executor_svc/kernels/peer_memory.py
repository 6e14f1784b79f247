"""What ranks compute over memory of each other: a sum with RMSNorm behind it, and a gather.

Each rank writes what it has to a buffer of its own, meets the others, and reads all their buffers. It leaves when all
have read, so that the buffers may be written again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from executor_svc.kernels.norm import add_and_normalise
from executor_svc.kernels.overlap import await_inputs, launch_options

MAX_PROGRAMS = 64
"""All run at once on any device that is served: each waits for those of the other ranks."""
_GATHER_BLOCK = 2048
MAX_GATHERED = MAX_PROGRAMS * _GATHER_BLOCK


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the programs of the ranks meet: program i of a rank with program i of all others."""

    rank: int
    arrivals: tuple[torch.Tensor, ...]
    """Of each rank int64 [MAX_PROGRAMS], in its own memory: how often others have come; at first 0."""
    expected: torch.Tensor
    """int64 [MAX_PROGRAMS], of this rank alone: what its `arrivals` were when it last left; at first 0."""


def sum_add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    buffers: Sequence[torch.Tensor],
    meeting: Meeting,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As add_rms_norm of the sum of all ranks' `x`, [n, size] with n <= MAX_PROGRAMS.

    It is summed in float32, in the order of the ranks, so that all get the same bits, and rounded to x's dtype.
    `buffers` are those of the ranks, each of x's dtype and at least as many elements.
    """
    num_tokens, size = x.shape
    assert x.is_contiguous()
    assert residual is None or residual.is_contiguous()
    assert num_tokens <= MAX_PROGRAMS
    normed, summed = torch.empty_like(x), torch.empty_like(x)
    block = triton.next_power_of_2(size)
    if num_tokens:
        _sum_add_rms_norm_kernel[(num_tokens,)](
            x,
            residual,
            weight,
            normed,
            summed,
            tuple(buffers),
            meeting.arrivals,
            meeting.expected,
            eps,
            RANK=meeting.rank,
            NUM_RANKS=len(buffers),
            SIZE=size,
            BLOCK=block,
            num_warps=min(max(block // 512, 1), 8),
            **launch_options(x.device),
        )
    return normed, summed


def gather(x: torch.Tensor, buffers: Sequence[torch.Tensor], meeting: Meeting) -> torch.Tensor:
    """All ranks' int32 `x`, by rank: [num_ranks, *x.shape]. At most MAX_GATHERED elements, as `buffers` have too."""
    count = x.numel()
    assert x.is_contiguous()
    assert count <= MAX_GATHERED
    gathered = torch.empty(len(buffers), *x.shape, dtype=x.dtype, device=x.device)
    if count:
        _gather_ranks_kernel[(triton.cdiv(count, _GATHER_BLOCK),)](
            x,
            gathered,
            tuple(buffers),
            meeting.arrivals,
            meeting.expected,
            count,
            RANK=meeting.rank,
            NUM_RANKS=len(buffers),
            BLOCK=_GATHER_BLOCK,
            **launch_options(x.device),
        )
    return gathered


@triton.jit
def _meet(arrivals: tl.tuple, expected: tl.tensor, RANK: tl.constexpr, NUM_RANKS: tl.constexpr) -> None:
    """Waits for this program's like on all ranks; what any of them wrote before, all see after.

    One counter for all others is enough: who comes a second time has left, so all had come the first time.
    """
    at = tl.program_id(0)
    target = tl.load(expected + at) + (NUM_RANKS - 1)
    tl.debug_barrier()  # what all threads wrote is told by one of them
    for peer in tl.static_range(NUM_RANKS):
        if peer != RANK:
            tl.atomic_add(arrivals[peer] + at, 1, sem="release", scope="sys")
    while tl.atomic_add(arrivals[RANK] + at, 0, sem="acquire", scope="sys") < target:
        pass
    tl.store(expected + at, target)
    tl.debug_barrier()


@triton.jit
def _sum_add_rms_norm_kernel(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    normed: tl.tensor,
    summed: tl.tensor,
    buffers: tl.tuple,
    arrivals: tl.tuple,
    expected: tl.tensor,
    eps: tl.tensor,
    RANK: tl.constexpr,
    NUM_RANKS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    at = tl.program_id(0).to(tl.int64) * SIZE + columns
    await_inputs(OVERLAP)
    tl.store(buffers[RANK] + at, tl.load(x + at, mask=inside, other=0.0), mask=inside)
    _meet(arrivals, expected, RANK, NUM_RANKS)
    total = tl.load(buffers[0] + at, mask=inside, other=0.0, volatile=True).to(tl.float32)
    for rank in tl.static_range(1, NUM_RANKS):
        total += tl.load(buffers[rank] + at, mask=inside, other=0.0, volatile=True).to(tl.float32)
    rounded = total.to(x.dtype.element_ty)
    if residual is None:
        tl.store(summed + at, rounded, mask=inside)
    total = rounded.to(tl.float32)
    add_and_normalise(total, at, inside, columns, residual, weight, normed, summed, eps, SIZE)
    _meet(arrivals, expected, RANK, NUM_RANKS)


@triton.jit
def _gather_ranks_kernel(
    x: tl.tensor,
    gathered: tl.tensor,
    buffers: tl.tuple,
    arrivals: tl.tuple,
    expected: tl.tensor,
    count: tl.tensor,
    RANK: tl.constexpr,
    NUM_RANKS: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    await_inputs(OVERLAP)
    tl.store(buffers[RANK] + at, tl.load(x + at, mask=inside, other=0), mask=inside)
    _meet(arrivals, expected, RANK, NUM_RANKS)
    for rank in tl.static_range(NUM_RANKS):
        values = tl.load(buffers[rank] + at, mask=inside, other=0, volatile=True)
        tl.store(gathered + rank * count + at, values, mask=inside)
    _meet(arrivals, expected, RANK, NUM_RANKS)
