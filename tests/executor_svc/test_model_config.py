"""What config.json may say, in both spellings, and how it is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from executor_svc.layers.rotary import RotaryEmbedding, attention_scale, rope_frequencies
from executor_svc.models.config import ModelConfig, RopeConfig, read_model_config
from executor_svc.models.qwen import QwenForCausalLM
from nanoserve.checkpoint import CheckpointError

BASE: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 4096,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


def read(folder: Path, **changes: Any) -> ModelConfig:
    """Parses BASE with `changes`; a field changed to ... is left out."""
    fields = {name: value for name, value in (BASE | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(fields))
    return read_model_config(folder)


def test_old_and_new_spelling_say_the_same(tmp_path: Path) -> None:
    old = read(
        tmp_path,
        torch_dtype="bfloat16",
        rope_theta=1e6,
        rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    )
    new = read(
        tmp_path,
        dtype="bfloat16",
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 4.0,
            "original_max_position_embeddings": 1024,
        },
    )
    assert old == new
    assert old.rope.theta == 1e6
    assert old.rope.factor == 4.0


def test_absent_fields_take_the_architecture_s_defaults(tmp_path: Path) -> None:
    qwen3 = read(tmp_path, num_key_value_heads=...)
    assert (qwen3.head_dim, qwen3.num_key_value_heads, qwen3.qk_norm, qwen3.qkv_bias) == (128, 4, True, False)
    assert (qwen3.rope, qwen3.dtype) == (RopeConfig("default", 10000.0), "float32")
    qwen2 = read(tmp_path, architectures=["Qwen2ForCausalLM"])
    assert (qwen2.head_dim, qwen2.qk_norm, qwen2.qkv_bias, qwen2.output_bias) == (16, False, True, False)
    assert read(tmp_path, architectures=["Qwen2ForCausalLM"], head_dim=32).head_dim == 32
    assert read(tmp_path, attention_bias=True).output_bias


@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3"])
def test_weights_per_layer_are_those_of_its_matrices(kind: str, tmp_path: Path) -> None:
    config = read(tmp_path, architectures=[f"{kind}ForCausalLM"], num_key_value_heads=2, head_dim=48)
    model = QwenForCausalLM(config, torch.float32, torch.device("meta"))
    matrices = [tensor for tensor in model.layers[0].parameters() if tensor.dim() == 2]
    assert config.weights_per_layer == sum(matrix.numel() for matrix in matrices)


def test_null_is_as_good_as_absent(tmp_path: Path) -> None:
    nulls = dict.fromkeys(
        (
            "dual_chunk_attention_config",
            "layer_types",
            "partial_rotary_factor",
            "quantization_config",
            "rope_parameters",
            "rope_scaling",
            "rope_theta",
            "torch_dtype",
        )
    )
    assert read(tmp_path, **nulls) == read(tmp_path)
    parameters = {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": None}
    assert read(tmp_path, rope_parameters=parameters) == read(tmp_path, rope_theta=5e5)
    assert read(tmp_path, partial_rotary_factor=1.0, layer_types=["full_attention"] * 2) == read(tmp_path)


junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(), max_size=2),
    st.just({"rope_type": "yarn"}),
    st.integers(100, 400).map(lambda exponent: 10**exponent),
)
ROPE_FIELDS = st.sampled_from(
    ["factor", "rope_theta", "beta_fast", "beta_slow", "attention_factor", "original_max_position_embeddings"]
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(
        st.sampled_from([*BASE, "rope_theta", "layer_types", "head_dim"]), junk, max_size=2
    ),
    rope=st.dictionaries(ROPE_FIELDS, junk, max_size=2),
)
def test_whatever_config_json_says_is_refused_in_one_line_or_makes_finite_rotations(
    tmp_path: Path, changes: dict[str, Any], rope: dict[str, Any]
) -> None:
    try:
        config = read(tmp_path, **changes, rope_scaling=YARN | rope)
    except CheckpointError as error:
        refusal = str(error)
    else:
        refusal = None
    if refusal is not None:
        assert refusal.startswith(f"{tmp_path / 'config.json'}: ")
        assert "\n" not in refusal
        return
    assert 2 <= config.max_model_len < 2**31
    # The frequencies of a head of another size would say nothing more.
    assert rope_frequencies(config.rope, min(config.head_dim, 64)).isfinite().all()
    assert math.isfinite(attention_scale(config.rope))


def test_yarn_extends_the_context(tmp_path: Path) -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 3072}
    assert read(tmp_path, rope_scaling=scaling).max_model_len == 4 * 3072
    assert read(tmp_path).max_model_len == 4096


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "architectures"),
        ({"architectures": ...}, "architectures"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"layer_types": 5}, "layer_types"),
        ({"layer_types": "full_attention"}, "layer_types"),
        ({"layer_types": {"full_attention": 1}}, "layer_types"),
        ({"dual_chunk_attention_config": {"chunk_size": 262144}}, "dual_chunk_attention_config"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"dtype": "float8_e4m3fn"}, "dtype"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_scaling.rope_type"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "linear", "factor": -2}}, "rope_scaling.factor"),
        (
            {"rope_parameters": {"rope_type": "default", "mrope_section": [1]}},
            "rope_parameters.mrope_section",
        ),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0}, "partial_rotary_factor"),
        ({"partial_rotary_factor": [1]}, "partial_rotary_factor"),
        ({"rope_theta": math.inf}, "rope_theta"),
        ({"rope_theta": math.nan}, "rope_theta"),
        ({"rope_theta": 10**400}, "rope_theta"),
        ({"rope_theta": 1}, "rope_theta"),
        ({"rope_theta": ""}, "rope_theta"),
        ({"rope_theta": False}, "rope_theta"),
        ({"rope_theta": 1, "rope_scaling": YARN}, "rope_theta"),
        ({"rope_scaling": YARN | {"rope_theta": 0.5}}, "rope_scaling.rope_theta"),
        ({"rope_scaling": YARN | {"factor": math.inf}}, "rope_scaling.factor"),
        ({"rope_scaling": YARN | {"factor": 1e30}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "linear", "factor": math.inf}}, "rope_scaling.factor"),
        ({"rope_scaling": YARN | {"beta_slow": 1e-320}}, "rope_scaling.beta_slow"),
        (
            {"rope_scaling": YARN | {"original_max_position_embeddings": 1024.0}},
            "rope_scaling.original_max_position_embeddings",
        ),
        ({"vocab_size": 2**31}, "vocab_size"),
        ({"vocab_size": 1}, "vocab_size"),
        ({"max_position_embeddings": 1}, "max_position_embeddings"),
        ({"hidden_size": ...}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"vocab_size": True}, "vocab_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 15}, "head_dim"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
    ],
)
def test_what_is_not_served_is_refused_by_file_and_field(
    tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, **changes)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'config.json'}: {field}: ")
    assert "\n" not in message


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
        {"rope_type": "yarn", "factor": 2.5, "original_max_position_embeddings": 64, "truncate": False},
        {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 512,
            "beta_fast": 20.0,
            "beta_slow": 2.0,
            "mscale": 0.7,
            "mscale_all_dim": 1.1,
        },
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 1024,
            "attention_factor": 0.9,
        },
        {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 1024},
        {"rope_type": "linear", "factor": 3.0},
    ],
)
def test_frequencies_equal_transformers(tmp_path: Path, parameters: dict[str, Any]) -> None:
    parameters = {"rope_theta": 50000.0} | parameters
    ours = read(tmp_path, head_dim=48, rope_parameters=parameters).rope
    theirs = Qwen3Config(
        hidden_size=64,
        num_attention_heads=4,
        head_dim=48,
        max_position_embeddings=4096,
        rope_parameters=parameters,
    )
    frequencies, scale = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](theirs)
    torch.testing.assert_close(rope_frequencies(ours, 48), frequencies, rtol=1e-7, atol=0)
    assert attention_scale(ours) == pytest.approx(scale)


def test_rotation_stays_exact_far_into_the_context() -> None:
    rotary = RotaryEmbedding(RopeConfig("default", 1e6), 8, 40001, torch.device("cpu"))
    cos, sin = rotary(torch.tensor([0, 40000], dtype=torch.int32))
    assert cos.shape == sin.shape == (2, 4)
    expected = [math.cos(40000 * 1e6 ** (-i / 4)) for i in range(4)]
    # The angle itself is a float32: 40,000 carries an error of 2e-3.
    assert cos[1].tolist() == pytest.approx(expected, abs=4e-3)
    assert sin[0].tolist() == [0.0] * 4
