"""Rotary position embedding (Su et al. 2021), plain, linearly scaled, or scaled by YaRN (Peng et al. 2023).

A head's vector is read as head_dim / 2 pairs (x[i], x[i + head_dim / 2]); pair i is rotated by position x frequency[i].
"""

import math

import torch
from torch import nn

from executor_svc.models.config import RopeConfig

Rotation = tuple[torch.Tensor, torch.Tensor]


class RotaryEmbedding(nn.Module):
    """Cosines and sines of every position's rotation angles; looked up once a forward pass, shared by all layers."""

    def __init__(self, rope: RopeConfig, head_dim: int, num_positions: int, device: torch.device) -> None:
        super().__init__()
        # On the CPU, so that every device rotates by the same angles.
        positions = torch.arange(num_positions, dtype=torch.float32)
        angles = positions[:, None] * rope_frequencies(rope, head_dim)
        table = torch.stack((angles.cos(), angles.sin())) * attention_scale(rope)
        self.table = nn.Buffer(table.to(device), persistent=False)

    def forward(self, positions: torch.Tensor) -> Rotation:
        """int32 [num_tokens] to cosines and sines, each float32 [num_tokens, head_dim / 2]."""
        cos, sin = self.table.index_select(1, positions).unbind()
        return cos, sin


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates [num_tokens, num_heads, head_dim] in float32; returns it in its own dtype."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def rope_frequencies(rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """Radians a position for each pair: float32 [head_dim / 2], on the CPU."""
    periods = rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.rope_type == "yarn":
        kept = _yarn_kept_share(rope, head_dim)
        return (1.0 - kept) * (1.0 / (rope.factor * periods)) + kept * (1.0 / periods)
    return 1.0 / periods / rope.factor


def attention_scale(rope: RopeConfig) -> float:
    """What YaRN multiplies queries and keys by; 1 for the others."""
    if rope.rope_type != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return _mscale(rope.factor, rope.mscale) / _mscale(rope.factor, rope.mscale_all_dim)
    return _mscale(rope.factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _yarn_kept_share(rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """How far each pair keeps its own frequency: 1 where it turns often within the original context, 0 where seldom.

    Between the pairs that make `beta_fast` and `beta_slow` turns over the original context the share falls linearly.
    """

    def pair_with_turns(turns: float) -> float:
        context = rope.original_max_position_embeddings
        return head_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_with_turns(rope.beta_fast), pair_with_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / width
    return 1.0 - ramp.clamp(0.0, 1.0)
