"""Normalisation, rotation with the write to the cache, and the MLP's gate, against the layers."""

import pytest
import torch
from kernel_checks import DTYPES, Draws, assert_near, new_seed
from torch.nn import functional

from executor_svc.layers.norm import RMSNorm
from executor_svc.layers.rotary import rotate

pytest.importorskip("triton", reason="the kernels need Triton")

from executor_svc.kernels.activation import silu_and_mul
from executor_svc.kernels.norm import add_rms_norm
from executor_svc.kernels.rotary_kv import rotate_and_write

SEED = new_seed()
EPS = 1e-6


def normalised(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    norm = RMSNorm(x.shape[-1], EPS, dtype=x.dtype, device=x.device)
    norm.weight.copy_(weight)
    return norm(x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [SEED, SEED + 1])
@pytest.mark.parametrize("size", [48, 1024, 5120])
def test_norm_is_that_of_the_layer_on_the_rounded_sum(
    size: int, seed: int, dtype: torch.dtype, device: torch.device
) -> None:
    draws = Draws(seed, dtype, device)
    num_tokens = draws.choices.randrange(1, 9)
    x, residual = draws.normal(num_tokens, size, scale=3.0), draws.normal(num_tokens, size)
    weight = draws.normal(size)
    normed, summed = add_rms_norm(
        x, residual, weight, EPS, normed=draws.poisoned(*x.shape), summed=draws.poisoned(*x.shape)
    )
    assert torch.equal(summed, x + residual)
    assert_near(normed, normalised(x + residual, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [SEED])
def test_norm_without_a_residual_returns_its_input_as_the_sum(
    seed: int, dtype: torch.dtype, device: torch.device
) -> None:
    draws = Draws(seed, dtype, device)
    x, weight = draws.normal(5, 96), draws.normal(96)
    before = x.clone()
    normed, summed = add_rms_norm(x, None, weight, EPS, normed=draws.poisoned(5, 96))
    assert summed is x
    assert torch.equal(x, before)
    assert_near(normed, normalised(x, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [SEED])
def test_norm_may_write_over_its_inputs(seed: int, dtype: torch.dtype, device: torch.device) -> None:
    draws = Draws(seed, dtype, device)
    x, residual, weight = draws.normal(3, 64), draws.normal(3, 64), draws.normal(64)
    expected = add_rms_norm(x, residual, weight, EPS)
    add_rms_norm(x, residual, weight, EPS, normed=x, summed=residual)
    assert torch.equal(x, expected[0])
    assert torch.equal(residual, expected[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [SEED, SEED + 1])
@pytest.mark.parametrize("size", [40, 3072])
def test_gate_is_silu_times_up(size: int, seed: int, dtype: torch.dtype, device: torch.device) -> None:
    draws = Draws(seed, dtype, device)
    gate_up = draws.normal(draws.choices.randrange(1, 9), 2 * size, scale=4.0)
    gate, up = gate_up.chunk(2, dim=-1)
    out = silu_and_mul(gate_up, out=draws.poisoned(*gate.shape))
    assert_near(out, functional.silu(gate) * up)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [SEED])
@pytest.mark.parametrize("has_norm", [True, False])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(16, 8, 128), (3, 1, 48), (10, 2, 64)])
def test_queries_keys_and_values_go_where_the_layers_put_them(
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    has_norm: bool,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    draws = Draws(seed, dtype, device)
    num_tokens, num_blocks, block_size = draws.choices.randrange(1, 7), 4, 16
    qkv = draws.normal(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim)
    weights = (draws.normal(head_dim), draws.normal(head_dim)) if has_norm else (None, None)
    angles = torch.randn(num_tokens, head_dim // 2, generator=draws.generator).to(device) * 9
    slots = torch.randperm(num_blocks * block_size, generator=draws.generator)[:num_tokens].to(device)
    cache_shape = num_blocks, block_size, num_kv_heads, head_dim
    keys, values = draws.poisoned(*cache_shape), draws.poisoned(*cache_shape)
    query = rotate_and_write(
        qkv,
        *weights,
        EPS,
        angles.cos(),
        angles.sin(),
        slots,
        keys,
        values,
        num_heads,
        out=draws.poisoned(num_tokens, num_heads, head_dim),
    )

    heads = qkv.unflatten(-1, (-1, head_dim))
    parts = heads.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    expected = [
        rotate(
            part if weight is None else normalised(part, weight), angles.cos()[:, None], angles.sin()[:, None]
        )
        for part, weight in zip(parts[:2], weights, strict=True)
    ]
    assert_near(query, expected[0])
    assert_near(keys.flatten(0, 1)[slots], expected[1])
    assert torch.equal(values.flatten(0, 1)[slots], parts[2])
    for cache in (keys, values):
        untouched = cache.flatten(0, 1).index_fill(0, slots, torch.nan)
        assert untouched.isnan().all()
