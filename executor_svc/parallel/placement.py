"""Where the tensors of a checkpoint go: each in pieces, of which a rank takes its own."""

from dataclasses import dataclass

import torch

Index = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """A tensor of a checkpoint: its shape there, and for each piece that is needed the view that takes it."""

    shape: tuple[int, ...]
    pieces: tuple[tuple[torch.Tensor, Index], ...]

    @staticmethod
    def whole(tensor: torch.Tensor) -> "Placement":
        """All of it into `tensor`."""
        shape = tuple(tensor.shape)
        return Placement(shape, ((tensor, tuple(slice(0, size) for size in shape)),))
