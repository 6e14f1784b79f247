"""Which texts are refused before all of them is tokenized."""

import asyncio

import pytest
from scheduler_harness import demo_model

from nanoserve.v1 import inference_pb2 as pb
from scheduler_svc.errors import InvalidRequest
from scheduler_svc.prompts import PromptReader

MAX_TOKENS = 100


def read(text: str) -> list[int]:
    reader = PromptReader(demo_model().tokenizer)
    return asyncio.run(reader.read(pb.GenerateRequest(text=text), MAX_TOKENS, 768)).tolist()


@pytest.mark.parametrize("unit", ["x9$Q ", "a", "é", "\n"])
def test_a_text_that_is_far_too_long_is_refused_by_its_beginning(unit: str):
    with pytest.raises(InvalidRequest, match="must come to 100 tokens at most"):
        read(unit * (4000 // len(unit)))


def test_a_long_text_of_few_tokens_is_read_whole():
    tokenizer = demo_model().tokenizer
    longest = max(tokenizer.token_bytes, key=len).decode()
    text = longest * 150
    assert len(text) > 16 * MAX_TOKENS
    assert len(tokenizer.encode(text)) < 2 * MAX_TOKENS
    assert read(text) == tokenizer.encode(text)
