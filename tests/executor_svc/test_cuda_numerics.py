"""Logits of the CUDA path against transformers: in bfloat16 about as near to float32 as transformers' own bfloat16."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import gpu
from torch_harness import Hand, make_runner, random_tokens, save_checkpoint

from executor_svc.cuda_runner import CudaRunner
from executor_svc.forward import BatchShape, ForwardBatch, pack_batch
from executor_svc.plan import Prefill

SIZES = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "initializer_range": 0.05,
}
NUM_TOKENS = 150
MOST_OF_THEIR_DISTANCE = 1.25


@torch.inference_mode()
def logits_of(runner: CudaRunner, prompts: list[list[int]], split: int) -> torch.Tensor:
    """Logits of all prompts' tokens from `split` on: those before are filled first. [num_prompts, n, vocab_size]."""
    runner.reset()
    hand, model_runner = Hand(runner, 3), runner.model_runner
    for row, prompt in enumerate(prompts):
        hand.start(row, prompt)
        if split:
            hand.prefill(row, split)
    hand.run()
    rows, prefills = np.arange(len(prompts), dtype=np.int32), []
    if NUM_TOKENS - split > 1:
        prefills = [Prefill(row, split, NUM_TOKENS - split, False) for row in rows.tolist()]
        rows = rows[:0]
    shape = BatchShape.of(rows, prefills)
    packed = torch.tensor(pack_batch(shape, rows, prefills, model_runner.state.dummy_row)).cuda()
    hidden, _ = model_runner.forward(ForwardBatch.of(shape, packed))
    return model_runner.model.logits(hidden).float().unflatten(0, (len(prompts), -1))


def distance(logits: torch.Tensor, reference: torch.Tensor) -> float:
    return float((logits - reference).norm() / reference.norm())


@gpu
@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("kind", ["Qwen3", "Qwen2"])
@pytest.mark.parametrize("num_rows", [1, 6, 14])
def test_logits_are_as_near_to_float32_as_those_of_transformers(
    kind: str, backend: str, num_rows: int, tmp_path: Path
) -> None:
    changes = {"head_dim": 64} if kind == "Qwen3" else {}
    theirs = save_checkpoint(tmp_path, kind, **SIZES, **changes).cuda()
    rng = np.random.default_rng(num_rows)
    prompts = [[t % 1000 for t in random_tokens(rng, NUM_TOKENS)] for _ in range(num_rows)]
    with torch.inference_mode():
        reference = theirs(torch.tensor(prompts).cuda()).logits
        allowed = distance(theirs.bfloat16()(torch.tensor(prompts).cuda()).logits.float(), reference)
    for dtype, most in (("bfloat16", MOST_OF_THEIR_DISTANCE * allowed), ("float32", 1e-4)):
        runner = make_runner(
            tmp_path,
            device="cuda",
            dtype=dtype,
            block_size=16,
            num_kv_blocks=300,
            max_num_seqs=14,
            max_num_batched_tokens=4096,
            attention_backend=backend,
            enforce_eager=True,
            verify=False,
        )
        assert isinstance(runner, CudaRunner)
        for split in (0, 70, NUM_TOKENS - 1):
            found = distance(logits_of(runner, prompts, split), reference[:, split:])
            print(f"{kind} {backend} {dtype} {num_rows} rows from {split}: {found:.2e}, allowed {most:.2e}")
            assert found <= most
        runner.close()
