"""Qwen2, Qwen2.5 and Qwen3 dense decoders, over a ragged batch of tokens and a paged KV cache."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import nn

from executor_svc.attention import AttentionBackend, AttentionContext
from executor_svc.layers.embedding import Embedding
from executor_svc.layers.linear import Linear
from executor_svc.layers.norm import RMSNorm
from executor_svc.layers.ops import Ops
from executor_svc.layers.rotary import RotaryEmbedding, Rotation
from executor_svc.models.config import ModelConfig
from executor_svc.parallel.placement import Placement
from executor_svc.parallel.shard import Shard

_WHOLE = Shard()


@dataclass(frozen=True, slots=True)
class Backend:
    """What a forward pass is computed with, between the model's matrix products."""

    ops: Ops
    attention: AttentionBackend
    capturable: bool
    """Whether a pass may be captured in a CUDA graph: neither waits for the device."""
    decode_layers: "DecodeLayers | None" = None
    """What computes the decoder layers of some decode steps all together; None: nothing does."""


class QwenAttention(nn.Module):
    """Grouped-query self-attention, with q/k normalisation where the model has it; a rank has its own heads."""

    def __init__(
        self, config: ModelConfig, layer: int, shard: Shard, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads = shard.query_heads(config).count
        query_size = shard.query_heads(config).scaled(config.head_dim)
        kv_size = shard.kv_heads(config).scaled(config.head_dim)
        self.qkv_proj = Linear(
            config.hidden_size,
            (query_size, kv_size, kv_size),
            bias=config.qkv_bias,
            dtype=dtype,
            device=device,
        )
        self.o_proj = Linear(
            query_size,
            (config.hidden_size,),
            bias=config.output_bias,
            adds_bias=shard.rank == 0,
            dtype=dtype,
            device=device,
        )
        self.q_norm: RMSNorm | None = None
        self.k_norm: RMSNorm | None = None
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps, dtype=dtype, device=device)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps, dtype=dtype, device=device)

    def forward(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        norm: RMSNorm,
        rotation: Rotation,
        backend: Backend,
        context: AttentionContext,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The output for norm(x + residual), and x + residual, each [num_tokens, hidden_size].

        Output and `x` are a rank's parts of sums over the ranks. All keys and values are written before any is read.
        """
        qkv, summed = backend.ops.normed_linear(x, residual, norm, self.qkv_proj)
        norms = None if self.q_norm is None or self.k_norm is None else (self.q_norm, self.k_norm)
        query = backend.ops.rotate_and_write(
            self.layer, qkv, self.num_heads, norms, rotation, context.slot_mapping
        )
        attended = backend.attention.attend(self.layer, query, context)
        return backend.ops.linear(attended.flatten(1), self.o_proj), summed

    def checkpoint_tensors(self, prefix: str) -> Iterator[tuple[str, Placement]]:
        """The checkpoint's names, below `prefix`, and where their tensors go."""
        yield from self.qkv_proj.parts([f"{prefix}.{part}_proj" for part in "qkv"])
        yield from self.o_proj.parts([f"{prefix}.o_proj"])
        if self.q_norm is not None and self.k_norm is not None:
            yield f"{prefix}.q_norm.weight", Placement.whole(self.q_norm.weight)
            yield f"{prefix}.k_norm.weight", Placement.whole(self.k_norm.weight)


class QwenMLP(nn.Module):
    """down(silu(gate(x)) * up(x)); a rank has its own columns of gate and up."""

    def __init__(self, config: ModelConfig, shard: Shard, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        size = shard.columns(config.intermediate_size)
        self.gate_up_proj = Linear(config.hidden_size, (size, size), bias=False, dtype=dtype, device=device)
        self.down_proj = Linear(size, (config.hidden_size,), bias=False, dtype=dtype, device=device)

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor, norm: RMSNorm, ops: Ops
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The output for norm(x + residual), and x + residual, each [num_tokens, hidden_size]; see QwenAttention."""
        gated, summed = ops.normed_gate(x, residual, norm, self.gate_up_proj)
        return ops.linear(gated, self.down_proj), summed

    def checkpoint_tensors(self, prefix: str) -> Iterator[tuple[str, Placement]]:
        """The checkpoint's names, below `prefix`, and where their tensors go."""
        yield from self.gate_up_proj.parts([f"{prefix}.gate_proj", f"{prefix}.up_proj"])
        yield from self.down_proj.parts([f"{prefix}.down_proj"])


class QwenDecoderLayer(nn.Module):
    """Attention, then MLP, each on a normalised input and added to what it was.

    The additions, of the ranks' parts too, are left to the next normalisation, which can do all at once: x and residual
    are carried apart.
    """

    def __init__(
        self, config: ModelConfig, layer: int, shard: Shard, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(size, eps, dtype=dtype, device=device)
        self.self_attn = QwenAttention(config, layer, shard, dtype, device)
        self.post_attention_layernorm = RMSNorm(size, eps, dtype=dtype, device=device)
        self.mlp = QwenMLP(config, shard, dtype, device)

    def forward(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        rotation: Rotation,
        backend: Backend,
        context: AttentionContext,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x and residual, [num_tokens, hidden_size], whose sum is the layer's input, to two whose sum is its output."""
        x, residual = self.self_attn(x, residual, self.input_layernorm, rotation, backend, context)
        output: tuple[torch.Tensor, torch.Tensor] = self.mlp(
            x, residual, self.post_attention_layernorm, backend.ops
        )
        return output

    def checkpoint_tensors(self, prefix: str) -> Iterator[tuple[str, Placement]]:
        """The checkpoint's names, below `prefix`, and where their tensors go."""
        yield f"{prefix}.input_layernorm.weight", Placement.whole(self.input_layernorm.weight)
        yield from self.self_attn.checkpoint_tensors(f"{prefix}.self_attn")
        norm = self.post_attention_layernorm.weight
        yield f"{prefix}.post_attention_layernorm.weight", Placement.whole(norm)
        yield from self.mlp.checkpoint_tensors(f"{prefix}.mlp")


class DecodeLayers(Protocol):
    """All decoder layers of a decode step at once."""

    def run(
        self,
        layers: Sequence[QwenDecoderLayer],
        x: torch.Tensor,
        rotation: Rotation,
        context: AttentionContext,
    ) -> torch.Tensor | None:
        """[num_tokens, hidden_size], a token a row, to the last layer's output; None for other kinds of steps."""


class QwenForCausalLM(nn.Module):
    """The whole decoder, or a rank's shard of it. Its weights are uninitialised until weights.py fills them."""

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        max_model_len: int | None = None,
        shard: Shard = _WHOLE,
    ) -> None:
        """For sequences of at most `max_model_len` tokens; None: of as many as the model takes."""
        super().__init__()
        vocabulary, hidden_size = shard.vocabulary(config.vocab_size), config.hidden_size
        self.embed_tokens = Embedding(vocabulary, hidden_size, dtype=dtype, device=device)
        self.rotary = RotaryEmbedding(
            config.rope, config.head_dim, max_model_len or config.max_model_len, device
        )
        self.layers = nn.ModuleList(
            QwenDecoderLayer(config, layer, shard, dtype, device) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(hidden_size, config.rms_norm_eps, dtype=dtype, device=device)
        self.tied = config.tie_word_embeddings
        self.lm_head = (
            self.embed_tokens if self.tied else Embedding(vocabulary, hidden_size, dtype=dtype, device=device)
        )

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, backend: Backend, context: AttentionContext
    ) -> torch.Tensor:
        """int32 [num_tokens] ids and positions to hidden states [num_tokens, hidden_size]."""
        x = self.embed_tokens(token_ids)
        x, residual = self.run_layers(x, self.rotary(positions), backend, context)
        hidden, _ = backend.ops.add_rms_norm(x, residual, self.norm)
        return hidden

    def run_layers(
        self, x: torch.Tensor, rotation: Rotation, backend: Backend, context: AttentionContext
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The layers' output, [num_tokens, hidden_size], or two tensors whose sum it is."""
        layers = cast(Sequence[QwenDecoderLayer], self.layers)
        if backend.decode_layers is not None:
            output = backend.decode_layers.run(layers, x, rotation, context)
            if output is not None:
                return output, None
        residual = None
        for layer in layers:
            x, residual = layer(x, residual, rotation, backend, context)
        return x, residual

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """[num_tokens, hidden_size] to a logit for each token id here, in the model's dtype, in `out` where given."""
        return self.lm_head.logits(hidden, out)

    def checkpoint_tensors(self) -> dict[str, Placement]:
        """For each tensor of a checkpoint, by its name, where it goes."""
        tensors = {"model.embed_tokens.weight": self.embed_tokens.placement()}
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, QwenDecoderLayer)
            tensors.update(layer.checkpoint_tensors(f"model.layers.{index}"))
        tensors["model.norm.weight"] = Placement.whole(self.norm.weight)
        if not self.tied:
            tensors["lm_head.weight"] = self.lm_head.placement()
        return tensors
