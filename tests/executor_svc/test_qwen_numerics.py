"""The whole tensor side against transformers: random checkpoints, float32, greedy tokens and log-probabilities."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_harness import Hand, make_runner, random_tokens, save_checkpoint
from transformers import PreTrainedModel

from executor_svc.plan import PromptLogprobs, RowLogprobs, RowSampling

NUM_TOKENS = 64
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3", {}),
    "qwen3 tied, one KV head, wide heads": (
        "Qwen3",
        {"tie_word_embeddings": True, "num_key_value_heads": 1, "head_dim": 24},
    ),
    "qwen3 biased, no grouping, sharded": (
        "Qwen3",
        {"attention_bias": True, "num_key_value_heads": 4, "head_dim": 8, "max_shard_size": "20KB"},
    ),
    "qwen3 yarn": ("Qwen3", {"rope_parameters": YARN, "max_position_embeddings": 256}),
    "qwen2": ("Qwen2", {}),
    "qwen2 tied, sharded": ("Qwen2", {"tie_word_embeddings": True, "max_shard_size": "15KB"}),
    "qwen2 yarn with its own attention factor": (
        "Qwen2",
        {"rope_parameters": YARN | {"attention_factor": 1.3, "beta_fast": 16.0, "truncate": False}},
    ),
    "qwen2 linear, other theta": (
        "Qwen2",
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}},
    ),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.replace(" ", "-"))
def test_tokens_and_logprobs_equal_transformers(case: str, tmp_path: Path) -> None:
    kind, changes = CASES[case]
    reference = save_checkpoint(tmp_path, kind, **changes)
    runner = make_runner(tmp_path)
    try:
        rng = np.random.default_rng(11)
        prefix = random_tokens(rng, 17)
        prompts = [
            prefix + random_tokens(rng, 6),
            prefix[:16] + random_tokens(rng, 9),
            random_tokens(rng, 70),
        ]
        prompts.append(random_tokens(rng, 1))
        hand, logprobs, judged = drive(runner, prompts, rng)
    finally:
        runner.close()
    for row, prompt in enumerate(prompts):
        token_ids = hand.rows[row].token_ids[: len(prompt) + NUM_TOKENS]
        assert token_ids == greedy(reference, prompt)
        expected = all_logprobs(reference, token_ids)
        check_output_logprobs(
            logprobs[row][:NUM_TOKENS], token_ids[len(prompt) :], expected[len(prompt) - 1 :]
        )
        if row != 1:  # the row that had a prefix hit asks for none
            check_prompt_logprobs(judged[row], prompt, expected)


def drive(
    runner: Any, prompts: list[list[int]], rng: np.random.Generator
) -> tuple[Hand, dict[int, list[RowLogprobs]], dict[int, list[PromptLogprobs]]]:
    """Runs all prompts, row i the i-th: chunked prefills beside decodes, then several decode steps a plan.

    Row 1 shares blocks that row 0 fills in the very same step.
    """
    hand = Hand(runner, seed=5)
    logprobs: dict[int, list[RowLogprobs]] = defaultdict(list)
    judged: dict[int, list[PromptLogprobs]] = defaultdict(list)

    def run() -> None:
        for output in hand.run():
            assert set(output.row_statuses.tolist()) <= {1}
            for entry in output.logprobs:
                logprobs[entry.row].append(entry)
            for part in output.prompt_logprobs:
                judged[part.row].append(part)

    asking = RowSampling(logprobs=3, prompt_logprobs=2)
    hand.start(2, prompts[2], asking)
    hand.prefill(2, 13)
    run()
    hand.start(0, prompts[0], asking)
    hand.start(1, prompts[1], RowSampling(logprobs=0), share=(0, 4))
    hand.prefill(1)
    hand.prefill(2, 1)
    hand.prefill(0)
    run()
    hand.start(3, prompts[3], asking)
    hand.prefill(3)
    hand.decode(1)
    hand.prefill(2, 20)
    hand.decode(0)
    run()
    while hand.rows[2].length < len(prompts[2]):
        hand.prefill(2, int(rng.integers(1, 20)))
        for row in (3, 0, 1):
            hand.decode(row)
        run()
    while min(len(logprobs[row]) for row in range(4)) < NUM_TOKENS:
        for row in rng.permutation(4).tolist():
            hand.decode(row, int(rng.integers(1, 5)))
        run()
    return hand, logprobs, judged


def check_output_logprobs(entries: list[RowLogprobs], token_ids: list[int], expected: torch.Tensor) -> None:
    for entry, token, row in zip(entries, token_ids, expected, strict=False):
        assert entry.token_logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert entry.token_rank == 1
        best = row.topk(len(entry.alternative_ids)).values.numpy()
        np.testing.assert_allclose(entry.alternative_logprobs, best, atol=1e-4)
        np.testing.assert_allclose(row.numpy()[entry.alternative_ids], best, atol=1e-4)


def check_prompt_logprobs(parts: list[PromptLogprobs], prompt: list[int], expected: torch.Tensor) -> None:
    positions = [part.first_position + i for part in parts for i in range(len(part.token_logprobs))]
    assert positions == list(range(1, len(prompt)))
    if not parts:
        return
    own = np.concatenate([part.token_logprobs for part in parts])
    rows = expected[: len(prompt) - 1]
    target = rows.gather(1, torch.tensor(prompt[1:])[:, None])
    np.testing.assert_allclose(own, target[:, 0].numpy(), atol=1e-4)
    ranks = np.concatenate([part.token_ranks for part in parts])
    np.testing.assert_array_equal(ranks, 1 + (rows > target).sum(-1).numpy())
    alternatives = np.concatenate([part.alternative_logprobs for part in parts])
    np.testing.assert_allclose(alternatives, rows.topk(2).values.numpy(), atol=1e-4)


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return output[0].tolist()


@torch.no_grad()
def all_logprobs(model: PreTrainedModel, token_ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([token_ids])).logits[0].float().log_softmax(-1)


def test_bfloat16_stays_close_to_transformers(tmp_path: Path) -> None:
    reference = save_checkpoint(tmp_path, "Qwen3", dtype=torch.bfloat16, initializer_range=0.1)
    prompt = random_tokens(np.random.default_rng(3), 90)
    runner = make_runner(tmp_path, dtype="bfloat16")
    try:
        assert runner.dtype == "bfloat16"
        hand = Hand(runner)
        hand.start(0, prompt, RowSampling(prompt_logprobs=0))
        hand.prefill(0)
        (output,) = hand.run()
    finally:
        runner.close()
    (part,) = output.prompt_logprobs
    exact = all_logprobs(reference.float(), prompt)[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
    theirs = all_logprobs(reference.bfloat16(), prompt)[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[
        :, 0
    ]
    ours = torch.tensor(part.token_logprobs)
    # No further from the exact figures than transformers' own bfloat16, with some room.
    assert (ours - exact).abs().mean() < 1.5 * (theirs - exact).abs().mean()
