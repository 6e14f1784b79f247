"""Linear layers, alone or several of one input merged into a single matrix."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional

from executor_svc.parallel.placement import Placement
from executor_svc.parallel.shard import Features


class Linear(nn.Module):
    """y = x W^T + b, with the outputs of several projections side by side where `out_features` names several.

    Of sharded features it computes those here. Where its inputs are sharded, y is to be summed over the ranks.
    """

    def __init__(
        self,
        in_features: int | Features,
        out_features: Sequence[int | Features],
        *,
        bias: bool,
        adds_bias: bool = True,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Without `adds_bias` the checkpoint's bias is another rank's to add."""
        super().__init__()
        self._inputs, self._outputs = _features(in_features), tuple(map(_features, out_features))
        self._has_bias = bias
        total = sum(output.count for output in self._outputs)
        self.weight = nn.Parameter(
            torch.empty(total, self._inputs.count, dtype=dtype, device=device), requires_grad=False
        )
        self.bias: nn.Parameter | None = None
        if bias and adds_bias:
            self.bias = nn.Parameter(torch.empty(total, dtype=dtype, device=device), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[num_tokens, in_features] to [num_tokens, sum of out_features], each counting those here."""
        return functional.linear(x, self.weight, self.bias)

    def parts(self, names: Sequence[str]) -> Iterator[tuple[str, Placement]]:
        """Each projection's weight (and bias) as a checkpoint names it, and the views to be written into."""
        (columns,), begin = self._inputs.runs, 0
        for name, output in zip(names, self._outputs, strict=True):
            rows = []
            for run in output.runs:
                end = begin + run.stop - run.start
                rows.append((slice(begin, end), run))
                begin = end
            weights = tuple((self.weight[here], (run, columns)) for here, run in rows)
            yield f"{name}.weight", Placement((output.total, self._inputs.total), weights)
            if self._has_bias:
                bias = self.bias
                biases = () if bias is None else tuple((bias[here], (run,)) for here, run in rows)
                yield f"{name}.bias", Placement((output.total,), biases)


def _features(features: int | Features) -> Features:
    return Features.whole(features) if isinstance(features, int) else features
