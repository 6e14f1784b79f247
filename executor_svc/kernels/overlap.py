"""Programmatic dependent launch: a kernel begins while the one before it on the stream still runs, and waits within.

Source: the CUDA programming guide, "programmatic dependent launch and synchronization"; for devices from Hopper on.
Every kernel that is launched so waits before it reads or writes anything that another kernel made: then the one before
it has ended, and by the same rule all before that.
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

_FIRST_CAPABILITY = (9, 0)


@cache
def can_overlap(device: torch.device) -> bool:
    """Whether kernels on the device may be launched so."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FIRST_CAPABILITY


def launch_options(device: torch.device) -> dict[str, Any]:
    """How a kernel with a parameter OVERLAP, which calls `await_inputs`, is launched on a device."""
    return {"OVERLAP": True, "launch_pdl": True} if can_overlap(device) else {"OVERLAP": False}


@triton.jit
def await_inputs(OVERLAP: tl.constexpr) -> None:
    """Waits for the kernel before, and lets the one behind begin as soon as there is room for it."""
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
