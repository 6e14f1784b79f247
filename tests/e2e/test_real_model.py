"""Opt-in: a real Qwen checkpoint, against transformers. NANOSERVE_TEST_MODEL names its folder or hub id."""

import os

import pytest

from nanoserve_client import Client
from nanoserve_client.supervisor import LocalServer

MODEL = os.environ.get("NANOSERVE_TEST_MODEL")
PROMPTS = ["The capital of France is", "def fibonacci(n):\n", "Counting: one, two, three,"]


@pytest.mark.slow
@pytest.mark.skipif(MODEL is None, reason="NANOSERVE_TEST_MODEL is not set")
def test_greedy_tokens_equal_those_of_transformers():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    flags = ["--verify", "--dtype=float32", "--device=cpu", "--num-kv-blocks=129", "--max-num-seqs=4"]
    with LocalServer(MODEL, executor_flags=flags) as server, Client(server.address) as client:
        for prompt in PROMPTS:
            ids = tokenizer(prompt).input_ids
            assert list(client.tokenize(prompt)) == ids
            completion = client.generate(ids, temperature=0.0, max_tokens=32, ignore_eos=True)
            with torch.inference_mode():
                expected = model.generate(
                    torch.tensor([ids]), max_new_tokens=32, min_new_tokens=32, do_sample=False
                )
            assert list(completion.token_ids) == expected[0, len(ids) :].tolist()
