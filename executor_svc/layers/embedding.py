"""Token embedding, and the output layer that may share its weight."""

import torch
from torch import nn
from torch.nn import functional

from executor_svc.parallel.placement import Placement
from executor_svc.parallel.shard import Features


class Embedding(nn.Module):
    """A vector a token id; used the other way round, a logit a token id. Of the token ids that are here."""

    def __init__(
        self, vocabulary: Features, hidden_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self._vocabulary = vocabulary
        self.weight = nn.Parameter(
            torch.empty(vocabulary.count, hidden_size, dtype=dtype, device=device), requires_grad=False
        )

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[num_tokens] to [num_tokens, hidden_size]; zeros for ids of other ranks, so that a sum has them all."""
        if self._vocabulary.count == self._vocabulary.total:
            return functional.embedding(token_ids, self.weight)
        local = token_ids - self._vocabulary.runs[0].start
        inside = (local >= 0) & (local < self._vocabulary.count)
        vectors = functional.embedding(torch.where(inside, local, 0), self.weight)
        return vectors.masked_fill_(~inside[:, None], 0.0)

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """[num_tokens, hidden_size] to a logit for each token id here, written to `out` where it is given."""
        if out is None:
            return functional.linear(hidden, self.weight)
        return torch.mm(hidden, self.weight.T, out=out)

    def placement(self) -> Placement:
        """Where a checkpoint's tensor goes."""
        hidden_size = self.weight.shape[1]
        index = (*self._vocabulary.runs, slice(0, hidden_size))
        return Placement((self._vocabulary.total, hidden_size), ((self.weight, index),))
