"""The demo checkpoint's network in plain PyTorch, for training: Qwen3 with tied embeddings.

The forward pass rounds every weight to bfloat16, so the stored bfloat16 weights are exactly
those that were trained.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_DIM, HEADS, KV_HEADS, NORM_EPS, ROPE_THETA, MAX_POSITIONS = 64, 4, 2, 1e-6, 10000.0, 2048


class Linear(nn.Module):
    """A bias-free linear map whose weight is rounded to the input's type."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * inputs**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Norm(nn.Module):
    """Root-mean-square normalisation over the last dimension."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), NORM_EPS)


class Attention(nn.Module):
    """Causal grouped-query attention with normalised queries and keys."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.q_proj = Linear(hidden, HEADS * HEAD_DIM)
        self.k_proj = Linear(hidden, KV_HEADS * HEAD_DIM)
        self.v_proj = Linear(hidden, KV_HEADS * HEAD_DIM)
        self.o_proj = Linear(HEADS * HEAD_DIM, hidden)
        self.q_norm, self.k_norm = Norm(HEAD_DIM), Norm(HEAD_DIM)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        def rotate(y: Tensor) -> Tensor:
            first, second = y.chunk(2, dim=-1)
            return y * cos + torch.cat((-second, first), dim=-1) * sin

        shape = (*x.shape[:2], -1, HEAD_DIM)
        q = rotate(self.q_norm(self.q_proj(x).view(shape)).transpose(1, 2))
        k = rotate(self.k_norm(self.k_proj(x).view(shape)).transpose(1, 2))
        v = self.v_proj(x).view(shape).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(*x.shape[:2], HEADS * HEAD_DIM))


class Mlp(nn.Module):
    """The gated feed-forward network."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = Linear(hidden, inner), Linear(hidden, inner)
        self.down_proj = Linear(inner, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(hidden), Norm(hidden)
        self.self_attn, self.mlp = Attention(hidden), Mlp(hidden, inner)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen3(nn.Module):
    """The network, with the parameter names of Qwen3ForCausalLM (tied embeddings)."""

    def __init__(self, vocab: int, hidden: int, layers: int, inner: int) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(vocab, hidden)
        nn.init.normal_(self.model.embed_tokens.weight, std=0.05)
        self.model.layers = nn.ModuleList(Layer(hidden, inner) for _ in range(layers))
        self.model.norm = Norm(hidden)
        for layer in self.model.layers:
            layer.self_attn.o_proj.weight.data *= (2 * layers) ** -0.5
            layer.mlp.down_proj.weight.data *= (2 * layers) ** -0.5
        inverse = ROPE_THETA ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        angles = torch.outer(torch.arange(MAX_POSITIONS), inverse).repeat(1, 2)
        self.register_buffer("cos", angles.cos().bfloat16(), persistent=False)
        self.register_buffer("sin", angles.sin().bfloat16(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        table = self.model.embed_tokens.weight.bfloat16()
        x = F.embedding(ids, table)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return F.linear(self.model.norm(x), table)

    def loss(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the mean cross-entropy of trained tokens and a small pull of logits to 0."""
        logits = self(ids[:, :-1]).float()
        keep = mask[:, 1:].float()
        norm = logits.logsumexp(-1)
        chosen = logits.gather(-1, ids[:, 1:, None]).squeeze(-1)
        return ((norm - chosen + 1e-4 * norm**2) * keep).sum() / keep.sum()
