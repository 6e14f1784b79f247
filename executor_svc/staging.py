"""How small arrays of the host get to the device without a wait: pinned buffers in a ring."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

# Every part of an upload begins at a multiple of this, so that it can be read as any type.
_ALIGNMENT = 8
_FIRST_CAPACITY_BYTES = 2**16


class Event(Protocol):
    """A point in the device's work: as torch.cuda.Event."""

    def record(self) -> None:
        """Puts the point behind all work queued so far on the current stream."""

    def synchronize(self) -> None:
        """Returns when the device has passed the point."""


@dataclass(slots=True)
class _Slot:
    host: torch.Tensor
    """uint8, pinned on CUDA."""
    device: torch.Tensor
    """uint8 of the same size; the host's own on the CPU."""
    event: Event | None
    """Behind the last copy from `host`; None on the CPU."""


class StagingRing:
    """Uploads arrays, several in one copy. Used by one thread, on one stream.

    A slot's pinned buffer is filled again only when the device has passed its last copy: a ring of more slots than
    uploads are queued never waits. Slots grow to the largest upload they carried.
    """

    def __init__(
        self, num_slots: int, device: torch.device, make_event: Callable[[], Event] | None = None
    ) -> None:
        """`make_event` None: there are none to wait for, copies being done when they return, as on the CPU."""
        self._device = device
        self._pinned = device.type == "cuda"
        self._slots = [
            self._slot(_FIRST_CAPACITY_BYTES, None if make_event is None else make_event())
            for _ in range(num_slots)
        ]
        self._next = 0

    def upload(self, parts: Sequence[NDArray[Any]]) -> list[torch.Tensor]:
        """One-dimensional tensors on the device, of the arrays' types and numbers.

        They are views of the slot: good for work queued before the ring has gone round.
        """
        firsts, end = [], 0
        for part in parts:
            firsts.append(end)
            end += -(-part.nbytes // _ALIGNMENT) * _ALIGNMENT
        slot = self._take(end)
        filled = slot.host.numpy()
        for first, part in zip(firsts, parts, strict=True):
            filled[first : first + part.nbytes] = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
        if slot.device is not slot.host:
            slot.device[:end].copy_(slot.host[:end], non_blocking=True)
        if slot.event is not None:
            slot.event.record()
        return [
            slot.device[first : first + part.nbytes].view(_TORCH_TYPES[part.dtype.name])
            for first, part in zip(firsts, parts, strict=True)
        ]

    def _take(self, num_bytes: int) -> _Slot:
        """The next slot, free to be filled and large enough."""
        index, self._next = self._next, (self._next + 1) % len(self._slots)
        slot = self._slots[index]
        if slot.event is not None:
            slot.event.synchronize()
        if num_bytes > len(slot.host):
            slot = self._slots[index] = self._slot(2 ** (num_bytes - 1).bit_length(), slot.event)
        return slot

    def _slot(self, capacity: int, event: Event | None) -> _Slot:
        host = torch.empty(capacity, dtype=torch.uint8, pin_memory=self._pinned)
        device = torch.empty(capacity, dtype=torch.uint8, device=self._device) if self._pinned else host
        return _Slot(host, device, event)


_TORCH_TYPES = {"int32": torch.int32, "int64": torch.int64, "float32": torch.float32}


def upload(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """A tensor of its own with an array's content; on CUDA the host does not wait for the copy."""
    tensor = torch.tensor(array)
    # PyTorch gives pinned memory back only when the copies from it, on this stream, are done.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
