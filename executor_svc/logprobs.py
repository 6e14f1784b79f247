"""Log-probabilities from raw logits: of given tokens, and of the likeliest alternatives."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from executor_svc.row_slices import row_slices
from nanoserve.arrays import Float32Array, Int32Array

# Most positions of a prompt whose logits exist at once; also the most that one PromptLogprobs holds.
MAX_PROMPT_SLICE = 256


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Alternatives are [num_tokens, num_alternatives], likeliest first, the rest [num_tokens]."""

    token_logprobs: torch.Tensor
    token_ranks: torch.Tensor
    """From 1: one more than the number of tokens strictly likelier."""
    alternative_ids: torch.Tensor
    alternative_logprobs: torch.Tensor

    def to(self, copy: Callable[[torch.Tensor], torch.Tensor]) -> "TokenLogprobs":
        """The same with what `copy` makes of every tensor."""
        return TokenLogprobs(
            copy(self.token_logprobs),
            copy(self.token_ranks),
            copy(self.alternative_ids),
            copy(self.alternative_logprobs),
        )

    def arrays(self) -> tuple[Float32Array, Int32Array, Int32Array, Float32Array]:
        """The four, which must be on the host, in the order of the fields; logarithms float32, the others int32."""
        return (
            self.token_logprobs.numpy(),
            self.token_ranks.int().numpy(),
            self.alternative_ids.int().numpy(),
            self.alternative_logprobs.numpy(),
        )


def token_logprobs(logits: torch.Tensor, token_ids: torch.Tensor, num_alternatives: int) -> TokenLogprobs:
    """Judges one token (int64 [num_tokens]) by each row of `logits`, float32 [num_tokens, vocab_size].

    More alternatives than there are tokens get the latter. In slices of rows, whose scratch is bounded.
    """
    parts = [
        _token_logprobs(logits[some], token_ids[some], num_alternatives) for some in row_slices(*logits.shape)
    ]
    if len(parts) == 1:
        return parts[0]
    return TokenLogprobs(
        torch.cat([part.token_logprobs for part in parts]),
        torch.cat([part.token_ranks for part in parts]),
        torch.cat([part.alternative_ids for part in parts]),
        torch.cat([part.alternative_logprobs for part in parts]),
    )


def _token_logprobs(logits: torch.Tensor, token_ids: torch.Tensor, num_alternatives: int) -> TokenLogprobs:
    largest = logits.amax(dim=-1, keepdim=True)
    log_sum = (logits - largest).exp().sum(dim=-1, keepdim=True).log()
    own = logits.gather(1, token_ids[:, None])
    ids = likeliest(logits, min(num_alternatives, logits.shape[-1]))
    return TokenLogprobs(
        token_logprobs=(own - largest - log_sum)[:, 0],
        token_ranks=1 + (logits > own).sum(dim=-1),
        alternative_ids=ids,
        alternative_logprobs=logits.gather(1, ids) - largest - log_sum,
    )


def likeliest(logits: torch.Tensor, count: int) -> torch.Tensor:
    """Ids of the `count` largest of each row, largest first and lowest id first among equals: int64 [rows, count].

    topk promises no order among equals. So it is given whole numbers, all different: the float32's bits, arranged to
    sort as the numbers do, over the id's complement.
    """
    if count == 0:
        return torch.empty(len(logits), 0, dtype=torch.int64, device=logits.device)
    bits = (logits + 0.0).view(torch.int32)  # adding 0 makes -0 into 0, which it equals
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    ids = torch.arange(logits.shape[-1], device=logits.device)
    return ((ordered << 32) | (0xFFFFFFFF - ids)).topk(count, dim=-1).indices
