"""Ops and attention as Triton kernels: see executor_svc.layers.ops and executor_svc.attention.base."""

import torch

from executor_svc.attention import AttentionContext
from executor_svc.kernels.activation import silu_and_mul
from executor_svc.kernels.decode_attention import decode_attention, num_splits_for
from executor_svc.kernels.inputs import advance_rows, gather_inputs
from executor_svc.kernels.norm import add_rms_norm
from executor_svc.kernels.prefill_attention import (
    prefill_attention,
    prefill_config,
    prefill_splits_for,
)
from executor_svc.kernels.rotary_kv import rotate_and_write
from executor_svc.kernels.sampling import sample_filtered_rows, sample_rows, sample_rows_of_ranks
from executor_svc.kernels.small_linear import MAX_TOKENS, Norm, small_linear
from executor_svc.kv_cache import KVCache
from executor_svc.layers.linear import Linear
from executor_svc.layers.norm import RMSNorm
from executor_svc.layers.rotary import Rotation
from executor_svc.parallel.ranks import ALONE, Ranks

_MAX_SMALL_WEIGHT = 2**24


class TritonOps:
    """Ops whose methods are one kernel each, or two, and may be captured in a CUDA graph."""

    def __init__(self, kv_cache: KVCache, ranks: Ranks = ALONE) -> None:
        self.kv_cache, self.ranks = kv_cache, ranks

    def full_logits(self, logits: torch.Tensor) -> torch.Tensor:
        return self.ranks.full_logits(logits)

    def agree(self, x: torch.Tensor) -> torch.Tensor:
        return self.ranks.agree(x)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor | None, norm: RMSNorm
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.ranks.peers is not None and self.ranks.peers.fuses(x):
            return self.ranks.peers.sum_add_rms_norm(x, residual, norm.weight, norm.eps)
        return add_rms_norm(self.ranks.sum(x), residual, norm.weight, norm.eps)

    def linear(self, x: torch.Tensor, layer: Linear) -> torch.Tensor:
        if _is_small(x, layer):
            return small_linear(x, layer.weight, layer.bias)
        output: torch.Tensor = layer(x)
        return output

    def normed_linear(
        self, x: torch.Tensor, residual: torch.Tensor | None, norm: RMSNorm, layer: Linear
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not _is_small(x, layer):
            normed, summed = self.add_rms_norm(x, residual, norm)
            return layer(normed), summed
        x = self.ranks.sum(x)
        prologue, summed = _prologue(x, residual, norm)
        return small_linear(x, layer.weight, layer.bias, norm=prologue), summed

    def normed_gate(
        self, x: torch.Tensor, residual: torch.Tensor | None, norm: RMSNorm, layer: Linear
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not _is_small(x, layer):
            normed, summed = self.add_rms_norm(x, residual, norm)
            return silu_and_mul(layer(normed)), summed
        x = self.ranks.sum(x)
        prologue, summed = _prologue(x, residual, norm)
        return small_linear(x, layer.weight, layer.bias, norm=prologue, gated=True), summed

    def rotate_and_write(
        self,
        layer: int,
        qkv: torch.Tensor,
        num_heads: int,
        norms: tuple[RMSNorm, RMSNorm] | None,
        rotation: Rotation,
        slot_mapping: torch.Tensor,
    ) -> torch.Tensor:
        query_norm, key_norm = norms or (None, None)
        return rotate_and_write(
            qkv,
            None if query_norm is None else query_norm.weight,
            None if key_norm is None else key_norm.weight,
            0.0 if query_norm is None else query_norm.eps,
            *rotation,
            slot_mapping,
            self.kv_cache.keys[layer],
            self.kv_cache.values[layer],
            num_heads,
        )

    def gather_inputs(
        self,
        token_rows: torch.Tensor,
        token_offsets: torch.Tensor,
        lengths: torch.Tensor,
        token_ids: torch.Tensor,
        block_tables: torch.Tensor,
        block_size: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return gather_inputs(token_rows, token_offsets, lengths, token_ids, block_tables, block_size)

    def sample_rows(
        self,
        logits: torch.Tensor,
        rows: torch.Tensor,
        positions: torch.Tensor,
        temperature: torch.Tensor,
        seeds: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.ranks.alone:
            return sample_rows_of_ranks(self.ranks, logits, rows, positions, temperature, seeds)
        return sample_rows(logits, rows, positions, temperature, seeds)

    def sample_filtered_rows(
        self,
        logits: torch.Tensor,
        rows: torch.Tensor,
        positions: torch.Tensor,
        temperature: torch.Tensor,
        seeds: torch.Tensor,
        filters: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return sample_filtered_rows(logits, rows, positions, temperature, seeds, *filters)

    def advance_rows(
        self, rows: torch.Tensor, sampled: torch.Tensor, lengths: torch.Tensor, token_ids: torch.Tensor
    ) -> None:
        advance_rows(rows, sampled, lengths, token_ids)


def _is_small(x: torch.Tensor, layer: Linear) -> bool:
    """Whether a launch costs as much as the weight's way from memory: there cuBLAS is slower than our kernel."""
    return len(x) <= MAX_TOKENS and layer.weight.numel() <= _MAX_SMALL_WEIGHT


def _prologue(x: torch.Tensor, residual: torch.Tensor | None, norm: RMSNorm) -> tuple[Norm, torch.Tensor]:
    """What a small linear layer does before its sums, and where it will leave x + residual."""
    summed = None if residual is None else torch.empty_like(x)
    return Norm(norm.weight, norm.eps, residual, summed), x if summed is None else summed


class TritonAttention:
    """Attention that reads the cache through the block tables, the decode rows' split over the device."""

    def __init__(self, kv_cache: KVCache, num_multiprocessors: int) -> None:
        self.kv_cache = kv_cache
        self._num_multiprocessors = num_multiprocessors

    def attend(self, layer: int, query: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        num_decodes = context.num_decodes
        if not len(context.prefill_rows):
            return self._decode(layer, query, context)
        # Zeros, as what padding holds is written to block 0 by the next layer, and that block stays finite.
        output = torch.zeros_like(query)
        if num_decodes:
            self._decode(layer, query[:num_decodes], context, output[:num_decodes])
        keys = self.kv_cache.keys[layer]
        num_tokens, num_heads, head_dim = query.shape
        config = prefill_config(head_dim, query.dtype, num_tokens * num_heads)
        # The fewest, where all decode rows are real; but a program for each of too many shares would take its time.
        num_prefill_tokens = max(1, num_tokens - num_decodes, num_tokens // 4)
        # Behind the decode tokens, where padding of theirs has left what is not its own.
        prefill_attention(
            query,
            keys,
            self.kv_cache.values[layer],
            context.block_tables,
            context.prefill_rows,
            context.prefill_starts,
            context.lengths,
            num_splits=prefill_splits_for(
                num_prefill_tokens, num_heads, keys.shape[2], config, self._num_multiprocessors
            ),
            config=config,
            out=output,
        )
        return output

    def _decode(
        self, layer: int, query: torch.Tensor, context: AttentionContext, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[num_decodes, num_heads, head_dim]; in as many splits as their number asks for, so that graphs can fix it."""
        keys = self.kv_cache.keys[layer]
        max_context = context.block_tables.shape[1] * self.kv_cache.block_size
        num_splits = num_splits_for(len(query), keys.shape[2], max_context, self._num_multiprocessors)
        return decode_attention(
            query,
            keys,
            self.kv_cache.values[layer],
            context.block_tables,
            context.decode_rows,
            context.lengths,
            num_splits,
            out=out,
        )
