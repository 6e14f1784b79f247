"""The whole model on the Triton kernels against the reference, with and without padded static buffers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kernel_checks import new_seed
from paged_rows import PagedRows, Shape, assert_near
from small_models import QWEN3
from torch_harness import Hand, make_runner, random_tokens, save_checkpoint

pytest.importorskip("triton", reason="the kernels need Triton")

from executor_svc.attention import AttentionContext
from executor_svc.graphs import DecodeBuckets, MixedBuckets, static_logits
from executor_svc.kernels.ops import TritonAttention, TritonOps
from executor_svc.kv_cache import KVCache
from executor_svc.models.qwen import Backend
from executor_svc.plan import RowSampling
from executor_svc.torch_runner import TorchRunner

# The interpreter computes with numpy, which warns of what the kernels mean: the logarithm of 0, and the like.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(divide by zero|overflow|invalid value) encountered:RuntimeWarning"
)
SEED = new_seed()
SAMPLINGS = [
    RowSampling(),
    RowSampling(temperature=0.9),
    RowSampling(temperature=1.1, top_k=20, logprobs=1, prompt_logprobs=0),
]


def generate(folder: Path, kind: str, backend: str) -> tuple[dict[int, list[int]], list[float]]:
    """Tokens by row, and the log-probabilities reported, of chunked prefills beside decodes, then decodes alone."""
    runner = make_runner(folder, block_size=16, num_kv_blocks=40, max_num_seqs=5)
    assert isinstance(runner, TorchRunner)
    model_runner = runner.model_runner
    if backend != "reference":
        cache = model_runner.backend.ops.kv_cache
        model_runner.backend = Backend(TritonOps(cache), TritonAttention(cache, 12), capturable=True)
    if backend == "padded":
        logits = static_logits(model_runner, 5)
        model_runner.decode_steps = DecodeBuckets(model_runner, 5, logits)
        model_runner.mixed_steps = MixedBuckets(model_runner, 5, 200, logits)
    hand, rng, logprobs = Hand(runner, 1), np.random.default_rng(1), []
    for row, length in enumerate((3, 20, 37)):
        hand.start(row, random_tokens(rng, length), SAMPLINGS[row], seed=row)
        hand.prefill(row, 30)
    outputs = hand.run()
    hand.prefill(2)
    hand.decode(0)
    hand.decode(1)
    outputs += hand.run()
    for row in range(3):
        hand.decode(row, 2 + row)
    outputs += hand.run()
    runner.close()
    for output in outputs:
        logprobs += [entry.token_logprob for entry in output.logprobs]
        logprobs += [float(value) for part in output.prompt_logprobs for value in part.token_logprobs]
    return {row: state.token_ids for row, state in hand.rows.items()}, logprobs


@pytest.mark.slow
@pytest.mark.skipif(
    torch.cuda.is_available(), reason="on a GPU tests/executor_svc/test_cuda_runner.py does this"
)
@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3"])
def test_the_kernels_together_give_the_reference_s_tokens(kind: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 64, "head_dim": 16}
    save_checkpoint(tmp_path, kind, **sizes)
    tokens, logprobs = generate(tmp_path, kind, "reference")
    for backend in ("exact", "padded"):
        ours, judged = generate(tmp_path, kind, backend)
        assert ours == tokens
        np.testing.assert_allclose(judged, logprobs, atol=1e-4)


@pytest.mark.parametrize("num_slots", [3, 7, 30])
def test_padding_among_the_decode_rows_changes_nothing_of_the_prefills(
    num_slots: int, device: torch.device
) -> None:
    """Rows 0 to 2 decode, rows 3 and 4 are prefilled, and padding behind row 2 is where row 3 has its tokens."""
    befores, counts = [9, 600, 33, 20, 0], [1, 1, 1, 19, 8]
    shape = Shape(2, 1, 32, 16, torch.float32)
    rows = PagedRows(
        SEED, [before + count for before, count in zip(befores, counts, strict=True)], shape, device
    )
    queries = [rows.random(count, shape.num_heads) for count in counts]
    query = torch.cat([*queries, rows.random(2, shape.num_heads)]).to(device)
    cache = KVCache(replace(QWEN3, num_key_value_heads=1, head_dim=32), 1, 16, torch.float32, device)
    cache.keys, cache.values = [rows.key_cache], [rows.value_cache]
    context = AttentionContext(
        slot_mapping=torch.zeros(len(query), dtype=torch.int64, device=device),
        block_tables=rows.tables,
        lengths=rows.int32([*befores, 0]),
        decode_rows=rows.int32([0, 1, 2] + [5] * (num_slots - 3)),
        prefill_rows=rows.int32([3, 4, 5]),
        prefill_starts=rows.int32([3, 22, 30, 30]),
    )
    output = TritonAttention(cache, 12).attend(0, query, context)
    for row, part in enumerate(output.split([*counts, 2])[:-1]):
        assert_near(part, rows.expected(row, queries[row], befores[row]))
    assert output.isfinite().all()
