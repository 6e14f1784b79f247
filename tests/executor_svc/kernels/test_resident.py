"""All layers of a decode step of one row in one launch, against the reference, with NaN wherever it must not look."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import pytest
import torch
from kernel_checks import Draws, new_seed
from small_models import QWEN3

from executor_svc.attention import AttentionContext, ReferenceAttention
from executor_svc.attention.base import AttentionBackend
from executor_svc.kv_cache import KVCache
from executor_svc.layers.ops import ReferenceOps
from executor_svc.models.config import ModelConfig
from executor_svc.models.qwen import Backend, QwenForCausalLM

pytest.importorskip("triton", reason="the kernels need Triton")

from executor_svc.kernels.resident import stack
from executor_svc.kernels.resident.stack import ResidentLayers

# The interpreter computes with numpy, which warns of what the kernels mean: the logarithm of 0, and the like.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(divide by zero|overflow|invalid value) encountered:RuntimeWarning"
)
SEED = new_seed()
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2.0**-5}
NUM_PROGRAMS = 8
QWEN2 = replace(
    QWEN3, num_hidden_layers=1, num_attention_heads=7, num_key_value_heads=1, qk_norm=False, qkv_bias=True,
    output_bias=True,
)  # fmt: skip
# Inputs that fill no whole number of tiles, and columns that go round the programs in several turns.
WIDE = replace(
    QWEN3, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=128, hidden_size=1040,
)  # fmt: skip


class Decode:
    """A model, and a row of random context in shuffled blocks of a cache that else holds NaN, but for block 0."""

    def __init__(
        self,
        seed: int,
        model: ModelConfig,
        length: int | None,
        dtype: torch.dtype,
        device: torch.device,
        block_size: int,
    ) -> None:
        """`length` is that of the context before the row's token; None for the dummy row, whose slot is in block 0."""
        draws = Draws(seed, dtype, device)
        self.model = QwenForCausalLM(model, dtype, device)
        for parameter in self.model.parameters():
            scale = 1.0 if parameter.dim() == 1 else 1.5 * parameter.shape[1] ** -0.5
            parameter.copy_(draws.normal(*parameter.shape, scale=scale))
        num_blocks = 0 if length is None else length // block_size + 1
        length = length or 0
        ids = draws.choices.sample(range(1, num_blocks + 3), num_blocks)
        other = next(block for block in range(1, num_blocks + 3) if block not in ids)
        table = torch.tensor([ids + [other] * 17 if ids else [0] * 17])
        self.slot = int(table[0, length // block_size]) * block_size + length % block_size
        held = (table[0, :num_blocks, None] * block_size + torch.arange(block_size)).flatten()[:length]
        self.cache = KVCache(model, num_blocks + 3, block_size, dtype, device)
        for slots in (*self.cache.keys, *self.cache.values):
            slots[1:] = torch.nan
            slots.flatten(0, 1)[held.to(device)] = draws.normal(length, *slots.shape[2:])
        self.token_ids, self.positions = draws.int32([seed % 32]), draws.int32([length])
        self.context = AttentionContext(
            slot_mapping=torch.tensor([self.slot], device=device),
            block_tables=draws.int32(torch.cat((torch.full_like(table, other), table))),
            lengths=draws.int32([999, length]),
            decode_rows=draws.int32([1]),
            prefill_rows=draws.int32([]),
            prefill_starts=draws.int32([0]),
        )

    def caches(self) -> torch.Tensor:
        """Keys and values of all layers, [n, num_slots, num_kv_heads, head_dim]: a copy."""
        return torch.stack([*self.cache.keys, *self.cache.values]).flatten(1, 2)

    def in_float32(self) -> "Decode":
        """The same model, row and cache, to be computed without rounding to this dtype."""
        other = copy.copy(self)
        other.model, other.cache = copy.deepcopy(self.model).float(), copy.copy(self.cache)
        other.cache.keys = [keys.float() for keys in self.cache.keys]
        other.cache.values = [values.float() for values in self.cache.values]
        return other

    def by_reference(self) -> torch.Tensor:
        return self.run(ReferenceAttention(self.cache))

    def run(self, attention: AttentionBackend | None, layers: ResidentLayers | None = None) -> torch.Tensor:
        """Hidden states; without `attention` the layers cannot be computed one by one."""
        ops = ReferenceOps(self.cache)
        backend = Backend(ops, cast(AttentionBackend, attention), capturable=False, decode_layers=layers)
        return self.model(self.token_ids, self.positions, backend, self.context)


@contextmanager
def memory_full_of_nan() -> Iterator[None]:
    """Within, memory that is allocated holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(1).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Within a relative norm: rounding of single sums may go either way."""
    assert actual.dtype == expected.dtype
    assert distance(actual, expected) <= TOLERANCE[actual.dtype] * expected.double().norm()


def distance(actual: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return (actual.double() - expected.double()).norm()


@pytest.mark.parametrize(
    ("model", "dtype", "block_size", "length"),
    [
        *(pytest.param(QWEN3, torch.float32, 16, length, id=f"qwen3-{length}") for length in (None, 64, 210)),
        *(pytest.param(QWEN2, torch.bfloat16, 32, length, id=f"qwen2-{length}") for length in (0, 210)),
        pytest.param(WIDE, torch.float32, 16, 65, id="wide-65"),
    ],
)
@pytest.mark.parametrize("seed", [SEED])
def test_hidden_states_and_cache_are_those_of_the_reference(
    seed: int,
    model: ModelConfig,
    dtype: torch.dtype,
    block_size: int,
    length: int | None,
    device: torch.device,
) -> None:
    # On a GPU the kernel serves bfloat16 alone.
    dtype = torch.bfloat16 if device.type == "cuda" else dtype
    decode = Decode(seed, model, length, dtype, device, block_size)
    layers = ResidentLayers(decode.cache, NUM_PROGRAMS)
    before = decode.caches()
    with memory_full_of_nan():
        output = decode.run(None, layers)
    ours = decode.caches()
    assert_near(output, decode.by_reference())
    written = ours[:, decode.slot]
    assert_near(written, decode.caches()[:, decode.slot])
    ours[:, decode.slot] = before[:, decode.slot]
    torch.testing.assert_close(ours, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("changes", [{"decode_rows": [1, 1]}, {"prefill_rows": [0]}, {"decode_rows": []}])
def test_only_steps_of_one_decode_row_are_taken(changes: dict[str, list[int]], device: torch.device) -> None:
    decode = Decode(SEED, QWEN3, 5, torch.bfloat16, device, 16)
    context = replace(
        decode.context, **{name: torch.tensor(rows, dtype=torch.int32) for name, rows in changes.items()}
    )
    x = torch.zeros(context.num_decodes + len(context.prefill_rows), 64, dtype=torch.bfloat16, device=device)
    layers = ResidentLayers(decode.cache, NUM_PROGRAMS)
    assert layers.run(list(decode.model.layers), x, decode.model.rotary(decode.positions), context) is None


@pytest.mark.parametrize(
    ("hidden_size", "num_programs", "max_weight", "served"),
    [
        (64, 2, stack._MAX_WEIGHT, True),
        pytest.param(64, 1, stack._MAX_WEIGHT, False, id="a KV head without a program"),
        pytest.param(72, 2, stack._MAX_WEIGHT, False, id="no whole number of tiles"),
        pytest.param(64, 2, 1, False, id="weights too large to gain"),
    ],
)
def test_layers_that_the_kernel_is_not_for_are_left_to_launches_one_by_one(
    hidden_size: int,
    num_programs: int,
    max_weight: int,
    served: bool,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stack, "_MAX_WEIGHT", max_weight)
    model = replace(QWEN3, num_hidden_layers=1, hidden_size=hidden_size)
    decode = Decode(SEED, model, 5, torch.bfloat16, device, 16)
    x = decode.model.embed_tokens(decode.token_ids)
    layers, rotation = list(decode.model.layers), decode.model.rotary(decode.positions)
    output = ResidentLayers(decode.cache, num_programs).run(layers, x, rotation, decode.context)
    assert (output is not None) == served


@pytest.mark.gpu
@pytest.mark.parametrize("length", [127, 1500, 3001])
def test_a_graph_gives_the_same_bits_each_time_and_is_as_exact_as_the_reference(length: int) -> None:
    device = torch.device("cuda")
    model = replace(
        QWEN3, hidden_size=1024, intermediate_size=3072, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
        num_hidden_layers=4,
    )  # fmt: skip
    decode = Decode(SEED, model, length, torch.bfloat16, device, 16)
    num_programs = torch.cuda.get_device_properties(device).multi_processor_count
    layers = ResidentLayers(decode.cache, num_programs)
    first = decode.run(None, layers)
    exact = decode.in_float32().by_reference()
    assert distance(first, exact) <= 1.5 * distance(decode.by_reference(), exact)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = decode.run(None, layers)
    for _ in range(200):
        output.fill_(torch.nan)
        graph.replay()
        assert torch.equal(output, first)
