"""What tests of small models share: a configuration to be changed, and the marker of what needs a GPU."""

from typing import Any

import pytest
import torch

from executor_svc.models.config import ModelConfig, RopeConfig

QWEN3 = ModelConfig(
    architecture="Qwen3ForCausalLM",
    vocab_size=32,
    hidden_size=64,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    max_model_len=4096,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    qkv_bias=False,
    output_bias=False,
    qk_norm=True,
    dtype="float32",
    rope=RopeConfig("default", 10000.0),
)


def gpu(test: Any) -> Any:
    """Marks a test that needs a CUDA device, and skips it where there is none."""
    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
    return pytest.mark.gpu(skip(test))
