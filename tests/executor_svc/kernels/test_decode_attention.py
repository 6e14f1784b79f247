"""Decode attention against float64, with NaN wherever no row may look."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import new_seed
from paged_rows import SHAPES, PagedRows, Shape, assert_near

pytest.importorskip("triton", reason="the kernels need Triton")

from executor_svc.kernels.decode_attention import decode_attention, num_splits_for

SEED = new_seed()
QWEN = Shape(2, 2, 128, 16, torch.bfloat16)


class Decodes(PagedRows):
    """A decode token a row, in random order, and padding at the end."""

    def __init__(
        self, seed: int, contexts: list[int], shape: Shape, device: torch.device, padding: int = 2
    ) -> None:
        super().__init__(seed, contexts, shape, device)
        dummy = len(contexts)
        self.order = random.Random(seed).sample(range(dummy), dummy) + [dummy] * padding
        self.query = self.random(len(self.order), shape.num_heads)
        self.lengths = self.int32([length - 1 for length in contexts] + [0])

    def run(self, num_splits: int, tokens: slice = slice(None)) -> torch.Tensor:
        """Attention of the tokens given; what is not written is NaN."""
        query = self.query[tokens].to(self.device)
        return decode_attention(
            query,
            self.key_cache,
            self.value_cache,
            self.tables,
            self.int32(self.order[tokens]),
            self.lengths,
            num_splits,
            out=torch.full_like(query, torch.nan),
        )

    def check(self, output: torch.Tensor) -> None:
        """Rows against float64; padding is finite."""
        for token, row in enumerate(self.order):
            if row < len(self.contexts):
                query = self.query[token : token + 1]
                assert_near(output[token : token + 1], self.expected(row, query, self.contexts[row] - 1))
        assert output.isfinite().all()


@pytest.mark.parametrize("num_splits", [1, 2, 40])
@pytest.mark.parametrize(("index", "seed"), [(index, SEED + index) for index in range(len(SHAPES))])
def test_every_row_sees_its_own_context_and_nothing_else(
    index: int, seed: int, num_splits: int, device: torch.device
) -> None:
    contexts = [random.Random(seed).randrange(65, 140), 64]
    batch = Decodes(seed, contexts, SHAPES[index], device, padding=1)
    batch.check(batch.run(num_splits))


@pytest.mark.parametrize("num_splits", [1, 7])
def test_rows_give_the_same_bits_alone_together_and_again(num_splits: int, device: torch.device) -> None:
    batch = Decodes(SEED, [3, 100], QWEN, device)
    together = batch.run(num_splits)
    assert torch.equal(batch.run(num_splits), together)
    for token in range(len(batch.order)):
        assert torch.equal(batch.run(num_splits, slice(token, token + 1)), together[token : token + 1])


def test_no_rows_give_no_output(device: torch.device) -> None:
    assert Decodes(0, [1], QWEN, device).run(2, slice(0, 0)).shape == (0, QWEN.num_heads, QWEN.head_dim)


def test_tensors_that_are_not_contiguous_are_refused(device: torch.device) -> None:
    batch = Decodes(0, [5], QWEN, device)
    batch.key_cache = batch.key_cache.transpose(0, 1)
    with pytest.raises(ValueError, match="keys must be contiguous"):
        batch.run(1)


@given(st.integers(1, 1024), st.integers(1, 16), st.integers(1, 10**6), st.integers(1, 200))
def test_splits_fill_the_device_and_no_more(
    num_rows: int, num_kv_heads: int, max_context: int, num_sms: int
) -> None:
    splits = num_splits_for(num_rows, num_kv_heads, max_context, num_sms)
    programs = num_rows * num_kv_heads
    assert splits >= 1
    assert splits == 1 or splits * programs <= 4 * num_sms
    assert splits == 1 or (splits - 1) * 64 < max_context
    assert num_splits_for(num_rows + 1, num_kv_heads, max_context, num_sms) <= splits
    assert num_splits_for(num_rows, num_kv_heads, max_context + 1, num_sms) >= splits


@pytest.mark.gpu
@pytest.mark.parametrize("num_splits", [1, 8])
def test_a_graph_follows_the_lengths_on_the_device(num_splits: int) -> None:
    batch = Decodes(SEED, [700, 1300, 64], QWEN, torch.device("cuda"))
    query, rows = batch.query.cuda(), batch.int32(batch.order)
    caches = batch.key_cache, batch.value_cache, batch.tables
    final = batch.lengths.clone()
    batch.lengths.fill_(0)
    batch.run(num_splits)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = decode_attention(query, *caches, rows, batch.lengths, num_splits)
    batch.lengths.copy_(final)
    for _ in range(20):
        output.fill_(torch.nan)
        graph.replay()
        batch.check(output)
        assert torch.equal(output, batch.run(num_splits))


@pytest.mark.gpu
def test_a_cache_may_have_more_elements_than_int32_counts() -> None:
    batch = Decodes(SEED, [40], QWEN, torch.device("cuda"))
    num_blocks = 2**31 // batch.key_cache[0].numel() + len(batch.key_cache)
    far = num_blocks - len(batch.key_cache)
    for name in ("key_cache", "value_cache"):
        near = getattr(batch, name)
        setattr(batch, name, torch.zeros((num_blocks, *near.shape[1:]), dtype=near.dtype, device="cuda"))
        getattr(batch, name)[far:] = near
    batch.tables[:-1] += far
    batch.check(batch.run(2))
