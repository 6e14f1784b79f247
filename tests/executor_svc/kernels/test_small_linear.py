"""Linear layers of few tokens, with the norm before and the gate after, against PyTorch in the same roundings."""

import pytest
import torch
from kernel_checks import DTYPES, Draws, new_seed
from torch.nn import functional

from executor_svc.layers.norm import RMSNorm

pytest.importorskip("triton", reason="the kernels need Triton")

from executor_svc.kernels.small_linear import LinearConfig, Norm, linear_config, small_linear

SEED = new_seed()
EPS = 1e-6
SMALL_TILES = LinearConfig(block_n=16, block_k=32, num_stages=2)


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Within a relative norm: rounding of single sums may go either way."""
    assert actual.dtype == expected.dtype
    assert actual.isfinite().all()
    tolerance = 2.0**-8 if actual.dtype == torch.bfloat16 else 1e-6
    assert (actual.double() - expected.double()).norm() <= tolerance * expected.double().norm()


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The layer with sums in float64, rounded once."""
    wide = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    return wide.to(x.dtype)


def normalised(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    norm = RMSNorm(x.shape[-1], EPS, dtype=x.dtype, device=x.device)
    norm.weight.copy_(weight)
    return norm(x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [SEED])
@pytest.mark.parametrize("split_k", [1, 3])
def test_linear_is_the_product_however_the_sum_is_split(
    split_k: int, seed: int, dtype: torch.dtype, device: torch.device
) -> None:
    draws = Draws(seed, dtype, device)
    num_tokens, size, columns = draws.choices.randrange(1, 17), draws.choices.randrange(20, 200), 43
    x, weight, bias = draws.normal(num_tokens, size), draws.normal(columns, size), draws.normal(columns)
    config = LinearConfig(block_n=16, block_k=32, split_k=split_k, num_stages=2)
    for _ in range(2):  # the counters are as they were
        out = small_linear(x, weight, bias, out=draws.poisoned(num_tokens, columns), config=config)
        assert_near(out, linear(x, weight, bias))
    assert_near(small_linear(x, weight, config=config), linear(x, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [SEED, SEED + 1])
@pytest.mark.parametrize("has_residual", [True, False])
def test_norm_and_gate_are_those_of_the_layers(
    has_residual: bool, seed: int, dtype: torch.dtype, device: torch.device
) -> None:
    draws = Draws(seed, dtype, device)
    num_tokens, size, columns = draws.choices.randrange(1, 17), 8 * draws.choices.randrange(5, 20), 24
    x, norm_weight = draws.normal(num_tokens, size, scale=3.0), draws.normal(size)
    weight, bias = draws.normal(2 * columns, size, scale=0.2), draws.normal(2 * columns)
    residual = draws.normal(num_tokens, size) if has_residual else None
    summed = draws.poisoned(num_tokens, size) if has_residual else None
    norm = Norm(norm_weight, EPS, residual, summed)
    out = small_linear(
        x, weight, bias, norm=norm, gated=True, out=draws.poisoned(num_tokens, columns), config=SMALL_TILES
    )
    total = x if residual is None else x + residual
    if summed is not None:
        assert torch.equal(summed, total)
    gate, up = linear(normalised(total, norm_weight), weight, bias).chunk(2, dim=-1)
    assert_near(out, functional.silu(gate) * up)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [SEED])
def test_shares_of_a_split_sum_all_see_the_norm_of_the_whole_input(
    seed: int, dtype: torch.dtype, device: torch.device
) -> None:
    draws = Draws(seed, dtype, device)
    x, residual, weight = draws.normal(7, 1100), draws.normal(7, 1100), draws.normal(30, 1100)
    norm = Norm(draws.normal(1100), EPS, residual, draws.poisoned(7, 1100))
    config = LinearConfig(block_n=16, block_k=256, split_k=2, num_stages=2)
    out = small_linear(x, weight, norm=norm, config=config)
    assert norm.summed is not None
    assert torch.equal(norm.summed, x + residual)
    assert_near(out, linear(normalised(x + residual, norm.weight), weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [SEED])
@pytest.mark.parametrize("split_k", [1, 3])
def test_a_token_is_the_same_among_any_others(
    split_k: int, seed: int, dtype: torch.dtype, device: torch.device
) -> None:
    draws = Draws(seed, dtype, device)
    x, weight, norm_weight = draws.normal(16, 100), draws.normal(20, 100), draws.normal(100)
    config = LinearConfig(block_n=16, block_k=32, split_k=split_k, num_stages=2)
    norm = Norm(norm_weight, EPS)
    together = small_linear(x, weight, norm=norm, config=config)
    for num_tokens in (1, 5):
        some = small_linear(x[:num_tokens].contiguous(), weight, norm=norm, config=config)
        assert torch.equal(some, together[:num_tokens])


@pytest.mark.parametrize("gated", [True, False])
def test_chosen_configurations_serve_a_layer_of_a_real_size(gated: bool, device: torch.device) -> None:
    draws = Draws(SEED, torch.bfloat16, device)
    x, weight = draws.normal(3, 1024), draws.normal(320, 1024, scale=0.05)
    config = linear_config(1024, 160 if gated else 320, gated, torch.bfloat16)
    assert config.split_k == 1 or not gated
    expected = linear(x, weight)
    if gated:
        gate, up = expected.chunk(2, dim=-1)
        expected = functional.silu(gate) * up
    assert_near(small_linear(x, weight, gated=gated), expected)
