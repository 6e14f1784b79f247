"""Token embedding, and the output layer that may share its weight."""

import torch
from torch import nn
from torch.nn import functional


class Embedding(nn.Module):
    """A vector a token id; used the other way round, a logit a token id."""

    def __init__(
        self, vocab_size: int, hidden_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.empty(vocab_size, hidden_size, dtype=dtype, device=device), requires_grad=False
        )

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[num_tokens] to [num_tokens, hidden_size]."""
        return functional.embedding(token_ids, self.weight)

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """[num_tokens, hidden_size] to [num_tokens, vocab_size], written to `out` where it is given."""
        if out is None:
            return functional.linear(hidden, self.weight)
        return torch.mm(hidden, self.weight.T, out=out)
