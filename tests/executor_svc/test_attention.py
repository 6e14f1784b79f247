"""Reference attention against a plain loop over positions, with NaN wherever no row may look."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch_harness import gpu

from executor_svc.attention import AttentionContext, PrefillSpan, make_attention_backend
from executor_svc.attention import reference as reference_module
from executor_svc.attention.reference import padded_num_blocks
from executor_svc.kv_cache import KVCache, default_num_blocks
from executor_svc.models.config import ModelConfig, RopeConfig

NUM_BLOCKS = 320  # enough for the longest examples at one token a block


def model_config(num_heads: int, num_kv_heads: int, head_dim: int) -> ModelConfig:
    """Of its fields only the heads, their size and the number of layers matter here."""
    return ModelConfig(
        architecture="Qwen3ForCausalLM",
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        max_model_len=256,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        qkv_bias=False,
        output_bias=False,
        qk_norm=False,
        dtype="float32",
        rope=RopeConfig("default", 10000.0),
    )


class Scene:
    """Sequences with known keys and values, laid out in shuffled blocks of a cache that else holds NaN."""

    def __init__(
        self,
        seed: int,
        spans: list[tuple[int, int]],
        decodes: list[int],
        block_size: int,
        device: str = "cpu",
    ) -> None:
        """`spans` are (tokens before, tokens in this step) of prefilled rows, `decodes` context lengths."""
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        self.num_prefills = len(spans)
        self.num_kv_heads = int(rng.integers(1, 4))
        self.num_heads = self.num_kv_heads * int(rng.integers(1, 4))
        self.head_dim = 2 * int(rng.integers(1, 9))
        self.contexts = [before + count for before, count in spans] + decodes
        self.counts = [count for _, count in spans] + [1] * len(decodes)
        config = model_config(self.num_heads, self.num_kv_heads, self.head_dim)
        self.cache = KVCache(config, NUM_BLOCKS, block_size, torch.float32, torch.device(device))
        for tensor in (*self.cache.keys, *self.cache.values):
            tensor.fill_(torch.nan)
        shape = (self.num_kv_heads, self.head_dim)
        self.keys = [torch.randn(length, *shape).to(device) for length in self.contexts]
        self.values = [torch.randn(length, *shape).to(device) for length in self.contexts]
        self.queries = [torch.randn(count, self.num_heads, self.head_dim).to(device) for count in self.counts]
        free = (rng.permutation(NUM_BLOCKS - 1) + 1).tolist()
        # What lies past a row's own blocks in its table is some other row's block.
        width = -(-max(self.contexts) // block_size) + 2
        self.tables = torch.tensor(
            rng.integers(0, NUM_BLOCKS, (len(self.contexts), width)), dtype=torch.int32, device=device
        )
        self.slots = []
        for row, length in enumerate(self.contexts):
            num_blocks = -(-length // block_size)
            blocks = [free.pop() for _ in range(num_blocks)]
            self.tables[row, :num_blocks] = torch.tensor(blocks, dtype=torch.int32)
            positions = torch.arange(length)
            slots = torch.tensor(blocks)[positions // block_size] * block_size + positions % block_size
            self.slots.append(slots.to(device))

    def run(self, layer: int) -> list[torch.Tensor]:
        """Puts the earlier positions in the cache, runs the step; returns each row's output."""
        befores = [length - count for length, count in zip(self.contexts, self.counts, strict=True)]
        for row, before in enumerate(befores):
            self.cache.write(
                layer, self.keys[row][:before], self.values[row][:before], self.slots[row][:before]
            )
        first_tokens = np.cumsum([0, *self.counts]).tolist()
        context = AttentionContext(
            slot_mapping=torch.cat([s[b:] for s, b in zip(self.slots, befores, strict=True)]),
            prefills=tuple(
                PrefillSpan(first_tokens[row], self.counts[row], self.contexts[row], self.tables[row])
                for row in range(self.num_prefills)
            ),
            decode_block_tables=self.tables[self.num_prefills :],
            decode_context_lens=np.array(self.contexts[self.num_prefills :], np.int32),
        )
        output = make_attention_backend("reference", self.cache).forward(
            layer,
            torch.cat(self.queries),
            torch.cat([k[b:] for k, b in zip(self.keys, befores, strict=True)]),
            torch.cat([v[b:] for v, b in zip(self.values, befores, strict=True)]),
            context,
        )
        return list(output.split(self.counts))

    def expected(self, row: int) -> torch.Tensor:
        """One position and one head at a time, in float64."""
        keys, values = self.keys[row].double(), self.values[row].double()
        output = torch.empty_like(self.queries[row], dtype=torch.float64)
        first = self.contexts[row] - self.counts[row]
        for index in range(self.counts[row]):
            for head in range(self.num_heads):
                kv_head = head // (self.num_heads // self.num_kv_heads)
                visible = first + index + 1
                scores = keys[:visible, kv_head] @ self.queries[row][index, head].double()
                weights = (scores / math.sqrt(self.head_dim)).softmax(0)
                output[index, head] = weights @ values[:visible, kv_head]
        return output


spans = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), max_size=3)
decodes = st.lists(st.integers(1, 40), max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), spans, decodes, st.sampled_from([1, 4, 5]))
def test_every_row_sees_its_own_context_and_nothing_else(
    seed: int, spans: list[tuple[int, int]], decodes: list[int], block_size: int
) -> None:
    assume(spans or decodes)
    scene = Scene(seed, spans, decodes, block_size)
    outputs = scene.run(layer=1)
    for row, output in enumerate(outputs):
        torch.testing.assert_close(output.double(), scene.expected(row), rtol=1e-4, atol=1e-5)
    assert scene.cache.keys[0].isnan().all(), "another layer was written"


def test_rows_give_the_same_numbers_alone_and_together() -> None:
    together = Scene(3, [(5, 9)], [3, 40, 17, 18], 4).run(0)
    scene = Scene(3, [(5, 9)], [3, 40, 17, 18], 4)
    scene.run(0)
    backend = make_attention_backend("reference", scene.cache)
    for row in range(1, 5):
        length = scene.contexts[row]
        context = AttentionContext(
            slot_mapping=scene.slots[row][-1:],
            prefills=(),
            decode_block_tables=scene.tables[row : row + 1],
            decode_context_lens=np.array([length], np.int32),
        )
        alone = backend.forward(0, scene.queries[row], scene.keys[row][-1:], scene.values[row][-1:], context)
        assert torch.equal(alone, together[row])


def test_bounds_of_scratch_memory_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Scene(4, [(5, 30), (0, 12)], [9, 9, 9, 30], 4).run(0)
    monkeypatch.setattr(reference_module, "_MAX_GATHERED_TOKENS", 20)
    monkeypatch.setattr(reference_module, "_MAX_SCORES", 200)
    for sliced, row in zip(Scene(4, [(5, 30), (0, 12)], [9, 9, 9, 30], 4).run(0), whole, strict=True):
        torch.testing.assert_close(sliced, row)


def test_rows_of_one_step_share_a_block_that_the_step_fills() -> None:
    config = model_config(1, 1, 4)
    cache = KVCache(config, 4, 2, torch.float32, torch.device("cpu"))
    query, key, value = torch.randn(4, 1, 4), torch.randn(4, 1, 4), torch.randn(4, 1, 4)
    # The reader of block 2 comes first in the batch, its filler second.
    tables = torch.tensor([[2, 3], [2, 1]], dtype=torch.int32)
    context = AttentionContext(
        slot_mapping=torch.tensor([6, 4, 5, 2]),
        prefills=(PrefillSpan(0, 1, 3, tables[0]), PrefillSpan(1, 3, 3, tables[1])),
        decode_block_tables=tables[:0],
        decode_context_lens=np.empty(0, np.int32),
    )
    output = make_attention_backend("auto", cache).forward(0, query, key, value, context)
    order = [1, 2, 0]
    weights = (key[order, 0] @ query[0, 0] / 2).softmax(0)
    torch.testing.assert_close(output[0, 0], weights @ value[order, 0])


@given(st.lists(st.integers(1, 5000), min_size=1), st.integers(1, 32))
def test_padding_of_a_row_covers_it_and_at_most_doubles_it(lens: list[int], block_size: int) -> None:
    widths = padded_num_blocks(np.array(lens, np.int32), block_size, 10**6)
    for length, width in zip(lens, widths.tolist(), strict=True):
        needed = -(-length // block_size)
        assert needed <= width < 2 * needed or width == needed == 1
        assert width & (width - 1) == 0
    assert padded_num_blocks(np.array(lens, np.int32), block_size, 3).max() <= 3


def test_block_zero_is_finite_from_the_start() -> None:
    cache = KVCache(model_config(1, 1, 4), 4, 2, torch.bfloat16, torch.device("cpu"))
    assert all(tensor[0].isfinite().all() for tensor in (*cache.keys, *cache.values))


def test_default_number_of_blocks_is_bounded_by_use_and_by_memory() -> None:
    cpu = torch.device("cpu")
    assert default_num_blocks(1024, 1000, cpu, 0.9) == 1000
    assert default_num_blocks(2**20, 10**9, cpu, 0.9) <= 2048
    with pytest.raises(ValueError, match="--num-kv-blocks"):
        default_num_blocks(2**50, 1000, cpu, 0.9)


def test_unknown_backend_is_refused_by_its_flag() -> None:
    with pytest.raises(ValueError, match="--attention-backend"):
        make_attention_backend(
            "flash", KVCache(model_config(1, 1, 4), 2, 2, torch.float32, torch.device("cpu"))
        )


@gpu
def test_cuda_gives_the_cpu_s_numbers() -> None:
    rows = [(0, 50), (37, 20)], [1, 9, 64, 33]
    for seed in range(5):
        on_cuda, on_cpu = Scene(seed, *rows, 4, "cuda").run(1), Scene(seed, *rows, 4).run(1)
        for ours, theirs in zip(on_cuda, on_cpu, strict=True):
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-5)
