"""What ranks do together. Alone, nothing: no collective, no copy; but `gather` needs a process group even then."""

import torch
import torch.distributed as dist

from executor_svc.parallel.peers import PeerMemory, Way
from executor_svc.parallel.shard import Shard

# Its newer name, and the older one, of which newer releases warn.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Ranks:
    """A rank among others, joined by the default process group of torch.distributed where there are any.

    Every rank calls the same methods in the same order, on tensors of the same shapes, and gets the same bits. All but
    `smallest` may be captured in a CUDA graph.
    """

    def __init__(self, shard: Shard, vocab_size: int) -> None:
        self.shard = shard
        self.peers: PeerMemory | None = None
        """What is small goes by it; None: everything goes by the process group."""
        self.vocab_size = vocab_size
        self.first_token = shard.vocabulary(vocab_size).runs[0].start
        """The token id of this rank's first logit."""
        self.num_logits = shard.padded_vocabulary(vocab_size)
        """The most logits that a rank has."""

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.shard.size == 1

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' `x`, which may be overwritten."""
        if self.alone:
            return x
        if self.peers is not None and (way := self.peers.way(x)) is not Way.GROUP:
            return self.peers.sum(x, way)
        dist.all_reduce(x)
        return x

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """All ranks' `x`, by rank: [size, *x.shape]."""
        if self.peers is not None and self.peers.gathers(x):
            return self.peers.gather(x)
        gathered = torch.empty(self.shard.size, *x.shape, dtype=x.dtype, device=x.device)
        _all_gather(gathered.flatten(), x.contiguous().flatten())
        return gathered

    def agree(self, x: torch.Tensor) -> torch.Tensor:
        """Rank 0's contiguous `x`, which is overwritten, on all ranks."""
        if not self.alone:
            dist.broadcast(x, 0)
        return x

    def full_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """[n, vocab_size] of each rank's own columns, [n, its number of token ids]."""
        if self.alone:
            return logits
        padding = self.num_logits - logits.shape[-1]
        gathered = self.gather(torch.nn.functional.pad(logits, (0, padding)))
        return gathered.transpose(0, 1).flatten(1)[:, : self.vocab_size].contiguous()

    def smallest(self, number: int, device: torch.device) -> int:
        """The smallest of all ranks' numbers; waits for the device."""
        if self.alone:
            return number
        tensor = torch.tensor([number], dtype=torch.int64, device=device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
        return int(tensor.item())


ALONE = Ranks(Shard(), 1)
"""The only rank of a model."""
