"""What benchmarks/kernels.py times: for each kernel, calls on the buffers of the models' shapes, and their bytes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional

from executor_svc.kernels.activation import silu_and_mul
from executor_svc.kernels.inputs import advance_rows, gather_inputs
from executor_svc.kernels.norm import add_rms_norm
from executor_svc.kernels.rotary_kv import rotate_and_write
from executor_svc.kernels.sampling import sample_filtered_rows, sample_rows
from executor_svc.kernels.small_linear import LinearConfig, Norm, linear_config, small_linear

ROTATION_BYTES = 256 * 2**20
SIZES, LARGE = (1, 8, 64, 256), 4096
VOCAB_SIZE = 151936
EPS = 1e-6

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes that kernels see."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int

    @property
    def qkv(self) -> int:
        """Outputs of the merged projection."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim


MODELS = (
    ModelShape("0.6B", 1024, 16, 8, 128, 3072),
    ModelShape("14B", 5120, 40, 8, 128, 17408),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table: calls that do the same on different buffers, and the bytes that each must move."""

    kernel: str
    model: str
    num_tokens: int
    num_bytes: int
    calls: Sequence[Call]


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer of a model, with what may be fused with it."""

    name: str
    model: str
    in_features: int
    out_features: int
    normed: bool
    gated: bool

    @property
    def num_bytes(self) -> int:
        """Of its weight."""
        return 2 * self.in_features * self.out_features


def layers(model: ModelShape) -> tuple[Layer, ...]:
    """The four of a decoder layer."""
    return (
        Layer("norm + qkv", model.name, model.hidden, model.qkv, True, False),
        Layer("o", model.name, model.heads * model.head_dim, model.hidden, False, False),
        Layer("norm + gate_up + silu", model.name, model.hidden, 2 * model.intermediate, True, True),
        Layer("down", model.name, model.intermediate, model.hidden, False, False),
    )


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Random numbers on the GPU, of the size that weights have."""
    return torch.randn(*shape, device="cuda", dtype=dtype) * 0.05


def elementwise_cases(model: ModelShape, num_tokens: int) -> Iterator[Case]:
    """Norm, rotation and gate; their buffers stay in the cache, as a step's do."""
    x, residual, weight = (
        normal(num_tokens, model.hidden),
        normal(num_tokens, model.hidden),
        normal(model.hidden),
    )
    num_bytes = 4 * 2 * x.numel()
    yield Case("norm", model.name, num_tokens, num_bytes, [partial(add_rms_norm, x, residual, weight, EPS)])

    qkv, norm = normal(num_tokens, model.qkv), normal(model.head_dim)
    angles = normal(num_tokens, model.head_dim // 2, dtype=torch.float32)
    keys = normal(num_tokens // 16 + 1, 16, model.kv_heads, model.head_dim)
    values = torch.empty_like(keys)
    slots = torch.randperm(num_tokens, device="cuda")
    num_bytes = 2 * 2 * qkv.numel() + 2 * 4 * angles.numel()
    rotate = partial(rotate_and_write, qkv, norm, norm, EPS, angles, angles, slots, keys, values, model.heads)
    yield Case("rotate and write", model.name, num_tokens, num_bytes, [rotate])

    gate_up = normal(num_tokens, 2 * model.intermediate)
    yield Case("silu", model.name, num_tokens, 3 * gate_up.numel(), [partial(silu_and_mul, gate_up)])


def batch_cases(num_rows: int) -> Iterator[Case]:
    """What is done once a step: inputs, write-back and sampling."""
    rows = torch.arange(num_rows, dtype=torch.int32, device="cuda")
    lengths = torch.zeros(num_rows + 1, dtype=torch.int32, device="cuda")
    token_ids = torch.zeros(num_rows + 1, 4096, dtype=torch.int32, device="cuda")
    tables = torch.zeros(num_rows + 1, 256, dtype=torch.int32, device="cuda")
    offsets = torch.zeros_like(rows)
    gather = [partial(gather_inputs, rows, offsets, lengths, token_ids, tables, 16)]
    yield Case("gather inputs", "", num_rows, 28 * num_rows, gather)
    advance = [partial(advance_rows, rows, rows, lengths, token_ids)]
    yield Case("advance rows", "", num_rows, 20 * num_rows, advance)

    num_bytes = 2 * num_rows * VOCAB_SIZE
    logits = [normal(num_rows, VOCAB_SIZE) * 60 for _ in range(max(1, min(16, ROTATION_BYTES // num_bytes)))]
    seeds = torch.arange(num_rows, device="cuda")
    for name, heat in (("sample", 1.0), ("sample, greedy", 0.0)):
        heats = torch.full((num_rows,), heat, device="cuda")
        calls = [partial(sample_rows, x, rows, rows, heats, seeds) for x in logits]
        yield Case(name, "", num_rows, num_bytes, calls)
    heats, top_k = torch.ones(num_rows, device="cuda"), torch.full((num_rows,), 50, device="cuda")
    filters = top_k, torch.full_like(heats, 0.95), torch.zeros_like(heats)
    calls = [partial(sample_filtered_rows, x, rows, rows, heats, seeds, *filters) for x in logits]
    yield Case("sample, top-k and top-p", "", num_rows, num_bytes, calls)


def weights_of(layer: Layer) -> list[torch.Tensor]:
    """Copies of a layer's weight that the L2 cache cannot hold together."""
    count = max(1, -(-ROTATION_BYTES // layer.num_bytes))
    return [normal(layer.out_features, layer.in_features) for _ in range(count)]


def fused_calls(
    layer: Layer, num_tokens: int, weights: list[torch.Tensor], config: LinearConfig
) -> Sequence[Call]:
    """The layer by small_linear."""
    x = normal(num_tokens, layer.in_features)
    norm = (
        Norm(normal(layer.in_features), EPS, torch.zeros_like(x), torch.empty_like(x))
        if layer.normed
        else None
    )
    run = partial(small_linear, x, norm=norm, gated=layer.gated, config=config)
    return [partial(run, weight) for weight in weights]


def separate_calls(layer: Layer, num_tokens: int, weights: list[torch.Tensor]) -> Sequence[Call]:
    """The layer by torch, with kernels of their own before and after."""
    x, factors = normal(num_tokens, layer.in_features), normal(layer.in_features)
    residual = torch.zeros_like(x)

    def run(weight: torch.Tensor) -> object:
        normed = add_rms_norm(x, residual, factors, EPS)[0] if layer.normed else x
        result = functional.linear(normed, weight)
        return silu_and_mul(result) if layer.gated else result

    return [partial(run, weight) for weight in weights]


def linear_cases(layer: Layer) -> Iterator[Case]:
    """A linear layer in all ways, for each number of tokens."""
    weights = weights_of(layer)
    for num_tokens in SIZES:
        moved = layer.num_bytes + 2 * num_tokens * (layer.in_features + layer.out_features)
        calls = separate_calls(layer, num_tokens, weights)
        yield Case(f"{layer.name}, torch", layer.model, num_tokens, moved, calls)
        if num_tokens > 16:
            continue
        config = default_config(layer)
        calls = fused_calls(layer, num_tokens, weights, config)
        yield Case(f"{layer.name}, small_linear", layer.model, num_tokens, moved, calls)


def default_config(layer: Layer) -> LinearConfig:
    """What small_linear chooses."""
    columns = layer.out_features // 2 if layer.gated else layer.out_features
    return linear_config(layer.in_features, columns, layer.gated, torch.bfloat16)


def all_cases() -> Iterator[Case]:
    """Every line of the table."""
    for model in MODELS:
        for num_tokens in (*SIZES, LARGE):
            yield from elementwise_cases(model, num_tokens)
    for num_rows in SIZES:
        yield from batch_cases(num_rows)
    for model in MODELS:
        for layer in layers(model):
            yield from linear_cases(layer)
