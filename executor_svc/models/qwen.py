"""Qwen2, Qwen2.5 and Qwen3 dense decoders, over a ragged batch of tokens and a paged KV cache."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional

from executor_svc.attention import AttentionBackend, AttentionContext
from executor_svc.layers.embedding import Embedding
from executor_svc.layers.linear import Linear
from executor_svc.layers.norm import RMSNorm
from executor_svc.layers.rotary import RotaryEmbedding, rotate
from executor_svc.models.config import ModelConfig

Rotation = tuple[torch.Tensor, torch.Tensor]


class QwenAttention(nn.Module):
    """Grouped-query self-attention, with q/k normalisation where the model has it."""

    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        query_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.qkv_proj = Linear(
            config.hidden_size,
            (query_size, kv_size, kv_size),
            bias=config.qkv_bias,
            dtype=dtype,
            device=device,
        )
        self.o_proj = Linear(
            query_size, (config.hidden_size,), bias=config.output_bias, dtype=dtype, device=device
        )
        self.q_norm: RMSNorm | None = None
        self.k_norm: RMSNorm | None = None
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps, dtype=dtype, device=device)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps, dtype=dtype, device=device)

    def forward(
        self, x: torch.Tensor, rotation: Rotation, attention: AttentionBackend, context: AttentionContext
    ) -> torch.Tensor:
        """[num_tokens, hidden_size] to the same."""
        query, key, value = (
            part.unflatten(-1, (-1, self.head_dim))
            for part in self.qkv_proj(x).split(self.qkv_proj.out_features, dim=-1)
        )
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = rotate(query, *rotation), rotate(key, *rotation)
        output: torch.Tensor = self.o_proj(
            attention.forward(self.layer, query, key, value, context).flatten(1)
        )
        return output

    def checkpoint_tensors(self, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        """The checkpoint's names, below `prefix`, and the views that take their tensors."""
        yield from self.qkv_proj.parts([f"{prefix}.{part}_proj" for part in "qkv"])
        yield from self.o_proj.parts([f"{prefix}.o_proj"])
        if self.q_norm is not None and self.k_norm is not None:
            yield f"{prefix}.q_norm.weight", self.q_norm.weight
            yield f"{prefix}.k_norm.weight", self.k_norm.weight


class QwenMLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        size = config.intermediate_size
        self.gate_up_proj = Linear(config.hidden_size, (size, size), bias=False, dtype=dtype, device=device)
        self.down_proj = Linear(size, (config.hidden_size,), bias=False, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden_size] to the same."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        output: torch.Tensor = self.down_proj(functional.silu(gate) * up)
        return output

    def checkpoint_tensors(self, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        """The checkpoint's names, below `prefix`, and the views that take their tensors."""
        yield from self.gate_up_proj.parts([f"{prefix}.gate_proj", f"{prefix}.up_proj"])
        yield from self.down_proj.parts([f"{prefix}.down_proj"])


class QwenDecoderLayer(nn.Module):
    """Attention, then MLP, each on a normalised input and added to it."""

    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(size, eps, dtype=dtype, device=device)
        self.self_attn = QwenAttention(config, layer, dtype, device)
        self.post_attention_layernorm = RMSNorm(size, eps, dtype=dtype, device=device)
        self.mlp = QwenMLP(config, dtype, device)

    def forward(
        self, x: torch.Tensor, rotation: Rotation, attention: AttentionBackend, context: AttentionContext
    ) -> torch.Tensor:
        """[num_tokens, hidden_size] to the same."""
        x = x + self.self_attn(self.input_layernorm(x), rotation, attention, context)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x

    def checkpoint_tensors(self, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        """The checkpoint's names, below `prefix`, and the views that take their tensors."""
        yield f"{prefix}.input_layernorm.weight", self.input_layernorm.weight
        yield from self.self_attn.checkpoint_tensors(f"{prefix}.self_attn")
        yield f"{prefix}.post_attention_layernorm.weight", self.post_attention_layernorm.weight
        yield from self.mlp.checkpoint_tensors(f"{prefix}.mlp")


class QwenForCausalLM(nn.Module):
    """The whole decoder. Its weights are uninitialised until executor_svc.weights fills them."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        vocab_size, hidden_size = config.vocab_size, config.hidden_size
        self.embed_tokens = Embedding(vocab_size, hidden_size, dtype=dtype, device=device)
        self.rotary = RotaryEmbedding(config.rope, config.head_dim, device)
        self.layers = nn.ModuleList(
            QwenDecoderLayer(config, layer, dtype, device) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(hidden_size, config.rms_norm_eps, dtype=dtype, device=device)
        self.tied = config.tie_word_embeddings
        self.lm_head = (
            self.embed_tokens if self.tied else Embedding(vocab_size, hidden_size, dtype=dtype, device=device)
        )

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        attention: AttentionBackend,
        context: AttentionContext,
    ) -> torch.Tensor:
        """[num_tokens] ids and positions to hidden states [num_tokens, hidden_size]."""
        x = self.embed_tokens(token_ids)
        rotation = self.rotary(positions)
        for layer in self.layers:
            x = layer(x, rotation, attention, context)
        hidden: torch.Tensor = self.norm(x)
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden_size] to float32 [num_tokens, vocab_size]."""
        return self.lm_head.logits(hidden).float()

    def checkpoint_tensors(self) -> dict[str, torch.Tensor]:
        """For each tensor of a checkpoint, by its name, the view that takes it."""
        tensors: dict[str, torch.Tensor] = {"model.embed_tokens.weight": self.embed_tokens.weight}
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, QwenDecoderLayer)
            tensors.update(layer.checkpoint_tensors(f"model.layers.{index}"))
        tensors["model.norm.weight"] = self.norm.weight
        if not self.tied:
            tensors["lm_head.weight"] = self.lm_head.weight
        return tensors
