"""How small arrays of the host get to the device without a wait: pinned buffers in a ring."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

# Every part of an upload begins at a multiple of this, so that it can be read as any type.
_ALIGNMENT = 8
_FIRST_CAPACITY_BYTES = 2**16
# Larger uploads, of prompts of tens of thousands of tokens, are rare: slots that kept room for them would add up.
_LARGEST_CAPACITY_BYTES = 2**18
_TORCH_TYPES = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
}


class Event(Protocol):
    """A point in the device's work: as torch.cuda.Event."""

    def record(self) -> None:
        """Puts the point behind all work queued so far on the current stream."""

    def synchronize(self) -> None:
        """Returns when the device has passed the point."""


class _Slot:
    """A buffer on the host, pinned on CUDA, and one on the device: on the CPU the same."""

    def __init__(self, capacity: int, device: torch.device, event: Event | None) -> None:
        self.capacity = capacity
        self.event = event
        """Behind the last copy; None on the CPU."""
        pinned = device.type == "cuda"
        self.host = torch.empty(capacity, dtype=torch.uint8, pin_memory=pinned)
        self.device = torch.empty(capacity, dtype=torch.uint8, device=device) if pinned else self.host
        # Made once, as they are what an upload of a few numbers would else spend its time on.
        array = self.host.numpy()
        self.arrays = {kind: array.view(kind) for kind in _TORCH_TYPES}
        self.tensors = {kind: self.device.view(torch_type) for kind, torch_type in _TORCH_TYPES.items()}


class StagingRing:
    """Uploads arrays, several in one copy. Used by one thread, on one stream.

    A slot's pinned buffer is filled again only when the device has passed its last copy: a ring of more slots than
    uploads are queued never waits. Slots grow to the largest upload they carried; what is too large for any goes alone.
    """

    def __init__(
        self, num_slots: int, device: torch.device, make_event: Callable[[], Event] | None = None
    ) -> None:
        """`make_event` None: there are none to wait for, copies being done when they return, as on the CPU."""
        self._device = device
        events = (None if make_event is None else make_event() for _ in range(num_slots))
        self._slots = [_Slot(_FIRST_CAPACITY_BYTES, device, event) for event in events]
        self._next = 0

    def upload(self, parts: Sequence[NDArray[Any]]) -> list[torch.Tensor]:
        """One-dimensional tensors on the device, with the numbers of the arrays: int32, int64 or float32.

        They may be views of a slot: good for work queued before the ring has gone round.
        """
        firsts, end = [], 0
        for part in parts:
            firsts.append(end // part.itemsize)
            end += -(-part.nbytes // _ALIGNMENT) * _ALIGNMENT
        if end > _LARGEST_CAPACITY_BYTES:
            return [upload(part, self._device) for part in parts]
        slot = self._take(end)
        for first, part in zip(firsts, parts, strict=True):
            slot.arrays[part.dtype][first : first + len(part)] = part
        if slot.device is not slot.host:
            slot.device[:end].copy_(slot.host[:end], non_blocking=True)
        if slot.event is not None:
            slot.event.record()
        return [
            slot.tensors[part.dtype][first : first + len(part)]
            for first, part in zip(firsts, parts, strict=True)
        ]

    def _take(self, num_bytes: int) -> _Slot:
        """The next slot, free to be filled and large enough."""
        index, self._next = self._next, (self._next + 1) % len(self._slots)
        slot = self._slots[index]
        if slot.event is not None:
            slot.event.synchronize()
        if num_bytes > slot.capacity:
            capacity = 2 ** (num_bytes - 1).bit_length()
            slot = self._slots[index] = _Slot(capacity, self._device, slot.event)
        return slot


def upload(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """A tensor of its own with an array's content; on CUDA the host does not wait for the copy."""
    tensor = torch.tensor(array)
    # PyTorch gives pinned memory back only when the copies from it, on this stream, are done.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
