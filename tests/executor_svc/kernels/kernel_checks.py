"""Random inputs for kernels, outputs that hold NaN before a kernel writes them, and how near is near enough."""

import os
import random

import torch

DTYPES = [torch.float32, torch.bfloat16]


def new_seed() -> int:
    """Another every run; tests put it into their ids, so that it is one for all processes of a run."""
    return random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID")).randrange(2**31)


class Draws:
    """Random tensors of a device and dtype, and random choices, from one seed."""

    def __init__(self, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.choices = random.Random(seed)
        self.dtype, self.device = dtype, device

    def normal(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=self.generator) * scale).to(self.dtype).to(self.device)

    def poisoned(self, *shape: int) -> torch.Tensor:
        """What a kernel must write all of."""
        return torch.full(shape, torch.nan, dtype=self.dtype, device=self.device)

    def int32(self, values: object) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.int32).to(self.device)


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Float32 within some ulps; bfloat16 equal but for one in a hundred, which may have rounded the other way."""
    assert actual.dtype == expected.dtype
    difference = (actual.double() - expected.double()).abs()
    if actual.dtype == torch.float32:
        assert (difference <= 1e-5 * expected.double().abs() + 1e-6).all(), difference.max()
        return
    assert (difference <= 2.0**-6 * expected.double().abs() + 1e-6).all(), difference.max()
    assert (difference > 0).float().mean() < 0.01
