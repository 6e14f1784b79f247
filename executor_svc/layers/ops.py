"""The operations of a model between its matrix products: an interface, and its readable reference in PyTorch.

What belongs together is one method, so that it can be one kernel: see executor_svc.kernels.ops.
"""

from typing import Protocol

import torch
from torch.nn import functional

from executor_svc.kv_cache import KVCache
from executor_svc.layers.linear import Linear
from executor_svc.layers.norm import RMSNorm
from executor_svc.layers.rotary import Rotation, rotate
from executor_svc.noise import gumbel, gumbel_noise, random_words_of
from executor_svc.parallel.ranks import ALONE, Ranks
from executor_svc.plan import RowStatus
from executor_svc.row_slices import row_slices


class FilteredSampler(Protocol):
    """Samples behind top-k, top-p and min-p."""

    def __call__(
        self,
        logits: torch.Tensor,
        rows: torch.Tensor,
        positions: torch.Tensor,
        temperature: torch.Tensor,
        seeds: torch.Tensor,
        filters: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Ops.sample_rows` of full logits; `filters` are those of all rows: int64, float32, float32."""


class Ops(Protocol):
    """Operations on the tokens of one forward pass and on the KV cache. None waits for the device.

    Where a normalisation takes `x`, each of several ranks gives its part, and x is their sum. `x` may be overwritten.
    """

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor | None, norm: RMSNorm
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm(x + residual), x + residual), each [num_tokens, size]; the sum is x where there is no residual."""

    def rotate_and_write(
        self,
        layer: int,
        qkv: torch.Tensor,
        num_heads: int,
        norms: tuple[RMSNorm, RMSNorm] | None,
        rotation: Rotation,
        slot_mapping: torch.Tensor,
    ) -> torch.Tensor:
        """Writes keys and values to the cache's layer; returns the query, [num_tokens, num_heads, head_dim].

        `qkv` is [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]; query and key are normalised by `norms`, if
        there are any, and rotated. `slot_mapping` int64 [num_tokens] names no slot twice, but for those of block 0.
        """

    def linear(self, x: torch.Tensor, layer: Linear) -> torch.Tensor:
        """The layer's output for [num_tokens, in_features]."""

    def normed_linear(
        self, x: torch.Tensor, residual: torch.Tensor | None, norm: RMSNorm, layer: Linear
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(layer(norm(x + residual)), x + residual); see `add_rms_norm`."""

    def normed_gate(
        self, x: torch.Tensor, residual: torch.Tensor | None, norm: RMSNorm, layer: Linear
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `normed_linear` for a layer of two projections, gate and up: silu(gate) * up, [num_tokens, size]."""

    def full_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """[n, vocab_size] from [n, the rank's number of token ids]; `logits` itself where there is one rank."""

    def agree(self, x: torch.Tensor) -> torch.Tensor:
        """Rank 0's contiguous `x`, which is overwritten, on all ranks."""

    def gather_inputs(
        self,
        token_rows: torch.Tensor,
        token_offsets: torch.Tensor,
        lengths: torch.Tensor,
        token_ids: torch.Tensor,
        block_tables: torch.Tensor,
        block_size: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids (int32), positions (int32) and slots (int64), each [num_tokens], of the tokens that a pass computes.

        Token i is that of row token_rows[i] at position lengths[row] + token_offsets[i]; both int32 [num_tokens].
        """

    def sample_rows(
        self,
        logits: torch.Tensor,
        rows: torch.Tensor,
        positions: torch.Tensor,
        temperature: torch.Tensor,
        seeds: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and statuses (of RowStatus), each int32 [n], by temperature and noise alone.

        `logits` [n, vocab_size] of any float type, or the rank's own columns of them; `rows` int32 [n]; `positions`
        int32 [n] of the sampled tokens; `temperature` float32 and `seeds` int64 are those of all rows. The id is 0
        where the status is not OK. Ranks tell each other their winners alone.
        """

    @property
    def sample_filtered_rows(self) -> FilteredSampler | None:
        """None where the general sampler has to do it."""

    def advance_rows(
        self, rows: torch.Tensor, sampled: torch.Tensor, lengths: torch.Tensor, token_ids: torch.Tensor
    ) -> None:
        """Ends a decode pass: each row is one position longer, and its sampled token comes next.

        lengths[row] += 1 and token_ids[row, lengths[row]] = sampled; `rows` and `sampled` int32 [n]. The last of all
        rows is padding, may come several times, and keeps its zeros.
        """


class ReferenceOps:
    """Ops in plain PyTorch, on any device; float32 arithmetic where the model's type is narrower."""

    sample_filtered_rows = None

    def __init__(self, kv_cache: KVCache, ranks: Ranks = ALONE) -> None:
        self.kv_cache, self.ranks = kv_cache, ranks

    def full_logits(self, logits: torch.Tensor) -> torch.Tensor:
        return self.ranks.full_logits(logits)

    def agree(self, x: torch.Tensor) -> torch.Tensor:
        return self.ranks.agree(x)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor | None, norm: RMSNorm
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.ranks.sum(x)
        summed = x if residual is None else x + residual
        return norm(summed), summed

    def rotate_and_write(
        self,
        layer: int,
        qkv: torch.Tensor,
        num_heads: int,
        norms: tuple[RMSNorm, RMSNorm] | None,
        rotation: Rotation,
        slot_mapping: torch.Tensor,
    ) -> torch.Tensor:
        num_kv_heads, head_dim = self.kv_cache.keys[layer].shape[2:]
        heads = qkv.unflatten(-1, (-1, head_dim))
        query, key, value = heads.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
        if norms is not None:
            query, key = norms[0](query), norms[1](key)
        cos, sin = (part[:, None] for part in rotation)
        self.kv_cache.write(layer, rotate(key, cos, sin), value, slot_mapping)
        return rotate(query, cos, sin)

    def linear(self, x: torch.Tensor, layer: Linear) -> torch.Tensor:
        output: torch.Tensor = layer(x)
        return output

    def normed_linear(
        self, x: torch.Tensor, residual: torch.Tensor | None, norm: RMSNorm, layer: Linear
    ) -> tuple[torch.Tensor, torch.Tensor]:
        normed, summed = self.add_rms_norm(x, residual, norm)
        return layer(normed), summed

    def normed_gate(
        self, x: torch.Tensor, residual: torch.Tensor | None, norm: RMSNorm, layer: Linear
    ) -> tuple[torch.Tensor, torch.Tensor]:
        normed, summed = self.add_rms_norm(x, residual, norm)
        gate, up = layer(normed).chunk(2, dim=-1)
        return functional.silu(gate) * up, summed

    def gather_inputs(
        self,
        token_rows: torch.Tensor,
        token_offsets: torch.Tensor,
        lengths: torch.Tensor,
        token_ids: torch.Tensor,
        block_tables: torch.Tensor,
        block_size: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        positions = lengths[token_rows] + token_offsets
        blocks = block_tables[token_rows, positions // block_size].long()
        return token_ids[token_rows, positions], positions, blocks * block_size + positions % block_size

    def sample_rows(
        self,
        logits: torch.Tensor,
        rows: torch.Tensor,
        positions: torch.Tensor,
        temperature: torch.Tensor,
        seeds: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.ranks.alone:
            return _best_of_all_ranks(self.ranks, logits, rows, positions, temperature, seeds)
        best = [
            _best_tokens(
                logits[some].float(), positions[some].long(), temperature[rows[some]], seeds[rows[some]]
            )
            for some in row_slices(*logits.shape)
        ]
        # NaN and infinity are contagious to the maximum.
        finite = logits.amax(dim=-1).isfinite()
        statuses = torch.where(finite, RowStatus.OK, RowStatus.NON_FINITE_LOGITS)
        return torch.where(finite, torch.cat(best), 0).int(), statuses.int()

    def advance_rows(
        self, rows: torch.Tensor, sampled: torch.Tensor, lengths: torch.Tensor, token_ids: torch.Tensor
    ) -> None:
        after = lengths[rows] + 1
        token_ids[rows, after] = sampled
        lengths[rows] = after
        token_ids[-1, :2].zero_()  # padding is always at position 0
        lengths[-1].zero_()


def _best_of_all_ranks(
    ranks: Ranks,
    logits: torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    temperature: torch.Tensor,
    seeds: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `Ops.sample_rows`: each rank's largest logit and its winner's, and of these the best; lowest id first."""
    logits, positions, temperature, seeds = logits.float(), positions.long(), temperature[rows], seeds[rows]
    own = _best_tokens(logits, positions, temperature, seeds, ranks.first_token)
    winner = logits.gather(1, own[:, None])[:, 0]
    reals = torch.stack((logits.amax(dim=-1), winner)).view(torch.int32)
    told = ranks.gather(torch.cat((reals, (own + ranks.first_token).int()[None])))
    peaks, logits = told[:, 0].T.view(torch.float32), told[:, 1].T.view(torch.float32)
    ids, peak = told[:, 2].T.long(), peaks.amax(dim=-1)
    draws = temperature > 0
    moved = (logits - peak[:, None]) / torch.where(draws, temperature, 1.0)[:, None]
    noise = gumbel(random_words_of(seeds, positions, ids))
    best = torch.where(draws[:, None], moved + noise, logits).argmax(dim=-1)
    finite = peak.isfinite()
    statuses = torch.where(finite, RowStatus.OK, RowStatus.NON_FINITE_LOGITS)
    return torch.where(finite, ids.gather(1, best[:, None])[:, 0], 0).int(), statuses.int()


def _best_tokens(
    logits: torch.Tensor,
    positions: torch.Tensor,
    temperature: torch.Tensor,
    seeds: torch.Tensor,
    first_token: int = 0,
) -> torch.Tensor:
    """argmax(logits), or for rows with a temperature argmax(logits / temperature + noise): int64 [n].

    `logits` are those of the tokens from `first_token` on; what is returned counts from it.
    """
    draws = temperature > 0
    if logits.device.type == "cpu" and not draws.any():  # elsewhere, to ask is to wait
        return logits.argmax(dim=-1)
    # Moved first, because a small temperature would else overflow and make tokens equal that are not.
    moved = (logits - logits.amax(dim=-1, keepdim=True)) / torch.where(draws, temperature, 1.0)[:, None]
    noise = gumbel_noise(seeds, positions, logits.shape[-1], first_token)
    return torch.where(draws[:, None], moved + noise, logits).argmax(dim=-1)
