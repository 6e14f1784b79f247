"""What config.json says of a dense Qwen model, in both of its spellings (before and since transformers 5)."""

from dataclasses import dataclass
from pathlib import Path

from executor_svc.models.fields import MOST, Fields
from nanoserve.checkpoint import read_json

_ARCHITECTURES = ("Qwen2ForCausalLM", "Qwen3ForCausalLM")
_ROPE_TYPES = ("default", "linear", "yarn")
_ROPE_FIELDS = {
    "type",
    "rope_type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding. All fields but `theta` matter to linear ("factor") and YaRN alone."""

    rope_type: str
    theta: float
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and variants of a model. `dtype` is the checkpoint's own, such as "bfloat16"."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_model_len: int
    """Most tokens of a sequence; what YaRN extends the context to is counted."""
    rms_norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    """Whether the attention's output projection has a bias."""
    qk_norm: bool
    dtype: str
    rope: RopeConfig

    @property
    def weights_per_layer(self) -> int:
        """Numbers in the matrices of one layer."""
        num_heads = 2 * self.num_attention_heads + 2 * self.num_key_value_heads
        return self.hidden_size * (num_heads * self.head_dim + 3 * self.intermediate_size)


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """What those who run no model need of one."""

    vocab_size: int
    max_model_len: int


def read_model_sizes(folder: Path) -> ModelSizes:
    """Reads of config.json what a virtual executor needs; CheckpointError as read_model_config."""
    path = folder / "config.json"
    fields = Fields(path, read_json(path))
    return ModelSizes(_vocab_size(fields), _max_model_len(fields, _rope(fields)))


def read_model_config(folder: Path) -> ModelConfig:
    """Reads config.json; CheckpointError, one line naming file and field, where it is wrong or not served."""
    path = folder / "config.json"
    fields = Fields(path, read_json(path))
    architecture = _architecture(fields)
    _refuse_variants(fields)
    is_qwen3 = architecture == "Qwen3ForCausalLM"
    num_heads = fields.integer("num_attention_heads")
    num_kv_heads = fields.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        fields.refuse(
            "num_key_value_heads", f"{num_kv_heads} does not divide the {num_heads} attention heads"
        )
    hidden_size = fields.integer("hidden_size")
    # Qwen3's own default, whatever the hidden size.
    head_dim = fields.integer("head_dim", 128 if is_qwen3 else max(1, hidden_size // num_heads))
    if head_dim % 2:
        fields.refuse("head_dim", f"must be even, got {head_dim}")
    attention_bias = fields.boolean("attention_bias", False)
    rope = _rope(fields)
    return ModelConfig(
        architecture=architecture,
        vocab_size=_vocab_size(fields),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_hidden_layers=fields.integer("num_hidden_layers"),
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        max_model_len=_max_model_len(fields, rope),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
        qkv_bias=attention_bias if is_qwen3 else True,
        output_bias=attention_bias if is_qwen3 else False,
        qk_norm=is_qwen3,
        dtype=_dtype(fields),
        rope=rope,
    )


def _architecture(fields: Fields) -> str:
    names = fields.values.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or names[0] not in _ARCHITECTURES:
        fields.refuse("architectures", f"{names!r} is not served, only {' and '.join(_ARCHITECTURES)} are")
    return str(names[0])


def _refuse_variants(fields: Fields) -> None:
    """Refuses what changes the computation and is not implemented."""
    values = fields.values
    if values.get("quantization_config") is not None:
        fields.refuse("quantization_config", "quantised checkpoints are not served")
    if fields.boolean("use_sliding_window", False):
        fields.refuse("use_sliding_window", "sliding window attention is not served")
    if values.get("dual_chunk_attention_config") is not None:
        fields.refuse("dual_chunk_attention_config", "dual chunk attention is not served")
    layer_types = values.get("layer_types", [])
    if layer_types is None:
        layer_types = []
    if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
        fields.refuse("layer_types", "only full_attention is served")
    activation = values.get("hidden_act", "silu")
    if activation != "silu":
        fields.refuse("hidden_act", f"{activation!r} is not served, only 'silu' is")


def _dtype(fields: Fields) -> str:
    """The element type, float32 where none is given, as in transformers."""
    name = "dtype" if fields.values.get("dtype") is not None else "torch_dtype"
    value = fields.values.get(name)
    if value is None:
        return "float32"
    if value not in ("float32", "bfloat16", "float16"):
        fields.refuse(name, f"{value!r} is not served")
    return str(value)


def _rope(fields: Fields) -> RopeConfig:
    """Reads `rope_scaling` beside `rope_theta` (old), or `rope_parameters` (new); the old wins, as in transformers."""
    name = "rope_scaling" if fields.values.get("rope_scaling") else "rope_parameters"
    values = fields.values.get(name) or {}
    if not isinstance(values, dict) or any(isinstance(value, dict) for value in values.values()):
        fields.refuse(name, "must be one flat object")
    rope = Fields(fields.path, values, f"{name}.")
    theta = rope.number("rope_theta", fields.number("rope_theta", 10_000.0, minimum=1.0), minimum=1.0)
    unknown = sorted(set(values) - _ROPE_FIELDS)
    if unknown:
        rope.refuse(unknown[0], "is not served")
    for owner in (rope, fields):
        if owner.values.get("partial_rotary_factor") not in (None, 1.0):
            owner.refuse("partial_rotary_factor", "only 1 is served")
    rope_type = values.get("rope_type", values.get("type", "default"))
    if rope_type not in _ROPE_TYPES:
        rope.refuse("rope_type", f"{rope_type!r} is not served, only {', '.join(_ROPE_TYPES)} are")
    if rope_type == "default":
        return RopeConfig("default", theta)
    if rope_type == "linear":
        return RopeConfig("linear", theta, factor=_factor(rope, None))
    return _yarn(fields, rope, theta)


def _yarn(fields: Fields, rope: Fields, theta: float) -> RopeConfig:
    max_position = _max_position(fields)
    original = fields.integer(
        "original_max_position_embeddings", rope.integer("original_max_position_embeddings", max_position)
    )
    attention_factor = rope.number("attention_factor", 0.0) or None
    factor = _factor(rope, max_position / original)
    if original * factor > MOST:
        rope.refuse("factor", f"extends the context of {original} tokens past {MOST}, got {factor:g}")
    return RopeConfig(
        rope_type="yarn",
        theta=theta,
        factor=factor,
        original_max_position_embeddings=original,
        attention_factor=attention_factor,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        mscale=rope.number("mscale", 0.0),
        mscale_all_dim=rope.number("mscale_all_dim", 0.0),
        truncate=rope.boolean("truncate", True),
    )


def _factor(rope: Fields, default: float | None) -> float:
    if rope.values.get("factor") is None and default is None:
        rope.refuse("factor", "is missing")
    return rope.number("factor", default or 1.0)


def _vocab_size(fields: Fields) -> int:
    return fields.integer("vocab_size", minimum=2)


def _max_position(fields: Fields) -> int:
    return fields.integer("max_position_embeddings", minimum=2)


def _max_model_len(fields: Fields, rope: RopeConfig) -> int:
    """`max_position_embeddings`, or the extended context where that is left at YaRN's original one, as Qwen does."""
    max_position = _max_position(fields)
    if rope.rope_type == "yarn":
        return max(max_position, int(rope.original_max_position_embeddings * rope.factor))
    return max_position
