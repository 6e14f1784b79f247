"""Prefill attention against float64, with NaN wherever no row may look."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import new_seed
from paged_rows import SHAPES, PagedRows, Shape, assert_near

pytest.importorskip("triton", reason="the kernels need Triton")

from executor_svc.kernels.prefill_attention import (
    PrefillConfig,
    prefill_attention,
    prefill_config,
    prefill_splits_for,
    query_tiles_for,
)

SEED = new_seed()
QWEN = Shape(2, 2, 128, 16, torch.bfloat16)


class Prefills(PagedRows):
    """Segments of (positions before, tokens), in random order of their rows, then empty ones of the dummy row.

    `skipped` tokens before the first, and `padding` behind the last, are of no segment.
    """

    def __init__(
        self,
        seed: int,
        segments: list[tuple[int, int]],
        shape: Shape,
        device: torch.device,
        padding: int = 0,
        skipped: int = 0,
    ) -> None:
        super().__init__(seed, [before + count for before, count in segments], shape, device)
        self.segments = segments
        self.order = random.Random(seed).sample(range(len(segments)), len(segments))
        starts = [skipped]
        for row in self.order:
            starts.append(starts[-1] + segments[row][1])
        self.starts = starts
        self.query = self.random(starts[-1], shape.num_heads)
        self.rows_on_device = self.int32(self.order + [len(segments)] * padding)
        self.starts_on_device = self.int32(starts + [starts[-1]] * padding)
        self.lengths = self.int32([before for before, _ in segments] + [0])

    def run(self, config: PrefillConfig | None = None, padding: int = 0, num_splits: int = 1) -> torch.Tensor:
        """Attention of all tokens and of `padding` tokens more, of no segment; what is not written is NaN."""
        query = torch.cat([self.query, self.query[:1].expand(padding, -1, -1)]).to(self.device)
        return prefill_attention(
            query,
            self.key_cache,
            self.value_cache,
            self.tables,
            self.rows_on_device,
            self.starts_on_device,
            self.lengths,
            config=config,
            num_splits=num_splits,
            out=torch.full_like(query, torch.nan),
        )

    def check(self, output: torch.Tensor) -> None:
        """Every segment against float64; nothing else was written."""
        assert output[: self.starts[0]].isnan().all()
        for segment, row in enumerate(self.order):
            tokens = slice(self.starts[segment], self.starts[segment + 1])
            assert_near(output[tokens], self.expected(row, self.query[tokens], self.segments[row][0]))
        assert output[self.starts[-1] :].isnan().all()


@pytest.mark.parametrize(("index", "seed"), [(index, SEED + index) for index in range(len(SHAPES))])
def test_every_token_sees_what_came_before_it_and_nothing_else(
    index: int, seed: int, device: torch.device
) -> None:
    rng = random.Random(seed)
    segments = [(0, 1), (0, rng.randrange(2, 50)), (rng.randrange(1, 120), rng.randrange(1, 50))]
    batch = Prefills(seed, segments, SHAPES[index], device, padding=3)
    batch.check(batch.run(padding=5))


@pytest.mark.parametrize("num_splits", [1, 4])
@pytest.mark.parametrize("skipped", [1, 40, 257])
def test_tokens_before_the_first_segment_stay_as_they_are(
    skipped: int, num_splits: int, device: torch.device
) -> None:
    segments = [(0, 40), (1200, 3), (33, 20)]
    batch = Prefills(SEED, segments, Shape(2, 2, 32, 16, torch.float32), device, padding=2, skipped=skipped)
    batch.check(batch.run(padding=9, num_splits=num_splits))


@pytest.mark.parametrize("num_splits", [2, 3, 16])
def test_a_long_context_is_put_together_from_its_shares(num_splits: int, device: torch.device) -> None:
    rng = random.Random(SEED)
    segments = [(rng.randrange(1100, 1700), rng.randrange(1, 20)), (0, 5), (rng.randrange(505, 520), 17)]
    batch = Prefills(SEED, segments, Shape(2, 2, 32, 16, torch.float32), device, padding=2)
    for _ in range(2):  # the counters are as they were
        batch.check(batch.run(padding=3, num_splits=num_splits))


@given(st.integers(1, 10000), st.integers(1, 4), st.integers(1, 8))
def test_as_many_splits_as_fill_the_device(num_tokens: int, num_kv_heads: int, group: int) -> None:
    config = PrefillConfig(64, 64, 4, 3)
    num_splits = prefill_splits_for(num_tokens, num_kv_heads * group, num_kv_heads, config, 132)
    tiles = -(-num_tokens // (64 // group)) * num_kv_heads
    assert 1 <= num_splits <= 16
    assert num_splits == 1 or tiles * num_splits <= 132
    assert num_splits == 16 or tiles * (num_splits + 1) > 132


def test_tiles_of_queries_change_no_number(device: torch.device) -> None:
    batch = Prefills(SEED, [(0, 30), (40, 33)], Shape(5, 1, 64, 16, torch.float32), device)
    small, large = (batch.run(PrefillConfig(queries, 32, 4, 2)) for queries in (16, 64))
    batch.check(small)
    torch.testing.assert_close(small, large, rtol=1e-5, atol=1e-5)


def test_segments_among_many_empty_ones_find_their_rows(device: torch.device) -> None:
    segments = [(index % 5, 2 if index % 9 == 8 else 0) for index in range(135)]
    batch = Prefills(SEED, segments, Shape(2, 1, 32, 16, torch.float32), device, padding=1)
    batch.check(batch.run())


def test_chunks_give_the_numbers_of_the_whole(device: torch.device) -> None:
    batch = Prefills(SEED, [(0, 100)], QWEN, device)
    whole = batch.run()
    arguments = batch.key_cache, batch.value_cache, batch.tables, batch.rows_on_device
    for first, stop in [(0, 30), (30, 81), (81, 100)]:
        batch.lengths.copy_(batch.int32([first, 0]))
        chunk = batch.query[first:stop].to(device)
        output = prefill_attention(chunk, *arguments, batch.int32([0, stop - first]), batch.lengths)
        torch.testing.assert_close(output, whole[first:stop], rtol=1e-2, atol=1e-2)


def test_no_tokens_give_no_output(device: torch.device) -> None:
    assert Prefills(0, [], QWEN, device, padding=4).run().shape == (0, QWEN.num_heads, QWEN.head_dim)


@given(st.lists(st.integers(0, 300)), st.integers(1, 16), st.sampled_from([16, 64, 128]))
def test_query_tiles_cover_every_segment(counts: list[int], group: int, queries: int) -> None:
    config = PrefillConfig(queries, 64, 4, 3)
    needed = sum(-(-count // max(1, queries // group)) for count in counts)
    assert needed <= query_tiles_for(sum(counts), len(counts), group, config) <= needed + len(counts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tiles_of_keys_are_the_same_for_any_number_of_tokens(dtype: torch.dtype) -> None:
    tiles = {prefill_config(128, dtype, 2**power).tile for power in range(20)}
    assert len(tiles) == 1


@pytest.mark.gpu
def test_a_graph_serves_other_segments_than_it_was_captured_with() -> None:
    captured = Prefills(SEED, [(0, 300), (40, 100)], QWEN, torch.device("cuda"), padding=2)
    query = captured.query.cuda()
    captured.run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = prefill_attention(
            query,
            captured.key_cache,
            captured.value_cache,
            captured.tables,
            captured.rows_on_device,
            captured.starts_on_device,
            captured.lengths,
        )
    captured.segments = [(10, 290), (60, 80)]
    captured.starts = [0]
    for row in captured.order:
        captured.starts.append(captured.starts[-1] + captured.segments[row][1])
    captured.starts_on_device.copy_(captured.int32(captured.starts + captured.starts[-1:] * 2))
    captured.lengths.copy_(captured.int32([10, 60, 0]))
    output.fill_(torch.nan)
    graph.replay()
    captured.check(output)
