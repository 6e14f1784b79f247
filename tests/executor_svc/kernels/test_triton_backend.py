"""The whole model on the Triton kernels against the reference, with and without padded static buffers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_harness import Hand, make_runner, random_tokens, save_checkpoint

pytest.importorskip("triton", reason="the kernels need Triton")

from executor_svc.graphs import DecodeBuckets, MixedBuckets, static_logits
from executor_svc.kernels.ops import TritonAttention, TritonOps
from executor_svc.models.qwen import Backend
from executor_svc.plan import RowSampling
from executor_svc.torch_runner import TorchRunner

# The interpreter computes with numpy, which warns of what the kernels mean: the logarithm of 0, and the like.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(divide by zero|overflow|invalid value) encountered:RuntimeWarning"
)
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
