"""Random Qwen checkpoints in every shape that the executor serves, written by transformers itself."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from nanoserve.checkpoint import demo_checkpoint

VOCAB_SIZE = 768
MAX_LEN = 256


@dataclass(frozen=True)
class Shape:
    """What a checkpoint looks like."""

    name: str
    family: str
    hidden_size: int = 64
    num_heads: int = 4
    num_kv_heads: int = 2
    num_layers: int = 2
    tied: bool = False
    shard_size: str = "1GB"
    extra: dict[str, Any] = field(default_factory=dict)


SHAPES = [
    Shape("qwen3_tied_wide_heads", "qwen3", tied=True, extra={"head_dim": 32}),
    Shape("qwen3_one_kv_head_sharded", "qwen3", num_kv_heads=1, shard_size="60KB", extra={"head_dim": 16}),
    Shape("qwen3_biased_no_gqa", "qwen3", num_kv_heads=4, extra={"head_dim": 8, "attention_bias": True}),
    Shape("qwen2_untied", "qwen2", hidden_size=48, num_heads=6, num_kv_heads=3),
    Shape("qwen2_tied_yarn", "qwen2", tied=True, num_layers=3, extra={"rope": "yarn"}),
]


def make_checkpoint(shape: Shape, folder: Path) -> torch.nn.Module:
    """Writes a checkpoint with the demo's tokenizer; returns the model that transformers loads from it, in float32."""
    config_class, model_class = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }[shape.family]
    extra = dict(shape.extra)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10_000.0}
    if extra.pop("rope", None) == "yarn":
        rope = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0}
        rope["original_max_position_embeddings"] = MAX_LEN // 4
    config = config_class(
        vocab_size=VOCAB_SIZE,
        hidden_size=shape.hidden_size,
        intermediate_size=2 * shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=MAX_LEN,
        tie_word_embeddings=shape.tied,
        rope_parameters=rope,
        # Spread far enough that the best token is seldom in doubt.
        initializer_range=0.15,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
        **extra,
    )
    torch.manual_seed(sum(shape.name.encode()))
    model = model_class(config)
    model.save_pretrained(folder, max_shard_size=shape.shard_size)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(demo_checkpoint() / name, folder / name)
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    loaded = model_class.from_pretrained(folder, dtype=torch.float32)
    loaded.eval()
    return loaded
