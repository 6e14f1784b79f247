"""Through the services: the tokens and log-probabilities of transformers on the same weights, in float32."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from random_checkpoints import SHAPES, VOCAB_SIZE, Shape, make_checkpoint

from nanoserve_client import Client, Completion, TokenLogprob
from nanoserve_client.supervisor import LocalServer

NUM_TOKENS = 32
TOLERANCE = 1e-4


def reference_tokens(model: torch.nn.Module, prompt: list[int]) -> list[int]:
    """Greedy tokens of transformers' own generate."""
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NUM_TOKENS,
            min_new_tokens=NUM_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
    return output[0, len(prompt) :].tolist()


def reference_logprobs(model: torch.nn.Module, tokens: list[int]) -> torch.Tensor:
    """Log-probabilities [len(tokens) - 1, vocab] at each position, of the token after it."""
    with torch.inference_mode():
        logits = model(torch.tensor([tokens])).logits[0, :-1]
    return logits.double().log_softmax(-1)


def check_logprob(entry: TokenLogprob, expected: torch.Tensor, token_id: int) -> None:
    """One position: the token's own log-probability, its rank, and the alternatives with theirs."""
    assert entry.token_id == token_id
    assert entry.logprob == pytest.approx(expected[token_id].item(), abs=TOLERANCE)
    likelier = expected[token_id] + TOLERANCE < expected
    maybe_likelier = expected[token_id] - TOLERANCE < expected
    assert likelier.sum() + 1 <= entry.rank <= maybe_likelier.sum() + 1
    best = expected.topk(len(entry.alternatives)).values
    for alternative, value in zip(entry.alternatives, best, strict=True):
        assert alternative.logprob == pytest.approx(value.item(), abs=TOLERANCE)
        assert alternative.logprob == pytest.approx(expected[alternative.token_id].item(), abs=TOLERANCE)


def check_completion(model: torch.nn.Module, prompt: list[int], completion: Completion) -> None:
    """Tokens equal, and log-probabilities of every prompt position and every output token."""
    tokens = list(completion.token_ids)
    assert tokens == reference_tokens(model, prompt)
    expected = reference_logprobs(model, prompt + tokens)
    assert completion.prompt_logprobs is not None
    assert completion.prompt_logprobs[0] is None
    entries = [*completion.prompt_logprobs[1:], *(completion.outputs[0].logprobs or ())]
    assert len(entries) == len(prompt) + len(tokens) - 1
    for position, entry in enumerate(entries):
        assert entry is not None
        check_logprob(entry, expected[position], (prompt + tokens)[position + 1])


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_tokens_and_logprobs_equal_those_of_transformers(shape: Shape, tmp_path: Path):
    model = make_checkpoint(shape, tmp_path)
    draw = random.Random(shape.name)
    prompts = [[draw.randrange(VOCAB_SIZE) for _ in range(length)] for length in (1, 5, 40, 120)]
    flags = ["--verify", "--dtype=float32", "--num-kv-blocks=65", "--max-num-seqs=4", "--block-size=8"]
    with (
        # Chunks of 32 tokens: the longer prompts are computed over several steps, beside the others' decoding.
        LocalServer(
            str(tmp_path), executor_flags=flags, scheduler_flags=["--max-num-batched-tokens=32"]
        ) as server,
        Client(server.address) as client,
        ThreadPoolExecutor(len(prompts)) as pool,
    ):
        completions = pool.map(
            lambda prompt: client.generate(
                prompt, max_tokens=NUM_TOKENS, ignore_eos=True, temperature=0.0, logprobs=5, prompt_logprobs=3
            ),
            prompts,
        )
        for prompt, completion in zip(prompts, completions, strict=True):
            check_completion(model, prompt, completion)
        # Scoring: the result that ends the sequence judges the prompt's last tokens.
        scored = client.generate(prompts[2], max_tokens=1, temperature=0.0, prompt_logprobs=0)
        expected = reference_logprobs(model, prompts[2])
        assert scored.prompt_logprobs is not None
        for position, entry in enumerate(scored.prompt_logprobs[1:]):
            check_logprob(entry, expected[position], prompts[2][position + 1])
