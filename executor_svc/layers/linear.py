"""Linear layers, alone or several of one input merged into a single matrix."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional


class Linear(nn.Module):
    """y = x W^T + b, with the outputs of several projections side by side where `out_features` names several."""

    def __init__(
        self,
        in_features: int,
        out_features: Sequence[int],
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.out_features = tuple(out_features)
        total = sum(self.out_features)
        self.weight = nn.Parameter(
            torch.empty(total, in_features, dtype=dtype, device=device), requires_grad=False
        )
        self.bias: nn.Parameter | None = None
        if bias:
            self.bias = nn.Parameter(torch.empty(total, dtype=dtype, device=device), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[num_tokens, in_features] to [num_tokens, sum of out_features]."""
        return functional.linear(x, self.weight, self.bias)

    def parts(self, names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Each projection's weight (and bias) as a checkpoint names it: views to be written into."""
        begin = 0
        for name, size in zip(names, self.out_features, strict=True):
            yield f"{name}.weight", self.weight[begin : begin + size]
            if self.bias is not None:
                yield f"{name}.bias", self.bias[begin : begin + size]
            begin += size
