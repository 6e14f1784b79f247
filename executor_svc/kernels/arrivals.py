"""Counters by which the programs of a split computation learn who of them finishes last."""

from functools import cache

import torch

_MAX_ARRIVALS = 65536


def arrivals(kernel: str, device: torch.device, num_counters: int) -> torch.Tensor:
    """A kernel's counters, int32, at least `num_counters`: zero between calls, as the last to arrive resets its own.

    All calls of the kernel share them: run those on one stream. RuntimeError where a device's first call is within a
    CUDA graph's capture; ValueError where there are too few counters.
    """
    if num_counters > _MAX_ARRIVALS:
        raise ValueError(f"{kernel}: {num_counters} sums are too many to be split")
    return _counters(kernel, device)


@cache
def _counters(kernel: str, device: torch.device) -> torch.Tensor:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(f"{kernel} must have run once on the device before its capture")
    return torch.zeros(_MAX_ARRIVALS, dtype=torch.int32, device=device)
