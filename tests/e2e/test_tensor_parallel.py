"""Ranks that share a model give the tokens of one process, and log-probabilities within rounding of its own."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from random_checkpoints import SHAPES, VOCAB_SIZE, Shape, make_checkpoint

from nanoserve_client import AsyncClient, Completion, TokenLogprob
from nanoserve_client.supervisor import LocalServer

SIZES = ["--dtype=float32", "--num-kv-blocks=129", "--max-num-seqs=16"]
FLAGS = ["--verify", "--device=cpu", *SIZES]
CUDA_FLAGS = ["--device=cuda", "--max-num-batched-tokens=256", *SIZES]
NUM_TOKENS = 24
TOLERANCE = 1e-4
UNEVEN = Shape("qwen2_heads_that_do_not_fit", "qwen2", hidden_size=48, num_heads=6, num_kv_heads=3)
BY_NAME = {shape.name: shape for shape in SHAPES} | {UNEVEN.name: UNEVEN}


@dataclass(frozen=True)
class Case:
    """A prompt, and how to go on from it."""

    prompt: list[int]
    params: dict[str, Any]


def make_cases(vocab_size: int) -> list[Case]:
    """Every way to choose a token, with prompts of which some begin alike."""
    draw = random.Random(3)
    common = [draw.randrange(vocab_size) for _ in range(40)]
    ways: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.0, "logprobs": 3, "prompt_logprobs": 2},
        {"temperature": 1.0},
        {"temperature": 0.7},
        {"temperature": 1.2, "top_k": 20},
        {"temperature": 1.0, "top_p": 0.8, "min_p": 0.02},
        {"temperature": 0.0, "logit_bias": {5: 40.0, vocab_size - 1: 39.0}, "frequency_penalty": 1.5},
        {"temperature": 0.9, "repetition_penalty": 1.3, "presence_penalty": 0.5, "logprobs": 0},
    ]
    return [
        Case(
            common[: 13 * (index % 3)] + [draw.randrange(vocab_size) for _ in range(draw.randint(1, 50))],
            params | {"seed": draw.getrandbits(64)},
        )
        for index, params in enumerate(ways * 2)
    ]


def answers(
    model: str | None, size: int, cases: list[Case], flags: Sequence[str] = FLAGS
) -> list[Completion]:
    """All cases at once, of a server of `size` ranks."""

    async def ask(address: str) -> list[Completion]:
        async with AsyncClient(address) as client:
            calls = (
                client.generate(case.prompt, max_tokens=NUM_TOKENS, ignore_eos=True, **case.params)
                for case in cases
            )
            return await asyncio.gather(*calls)

    executor_flags = [*flags, f"--tensor-parallel-size={size}"]
    with LocalServer(model, executor_flags=executor_flags) as server:
        return asyncio.run(ask(server.address))


def check_same(one: list[Completion], several: list[Completion]) -> None:
    for expected, answer in zip(one, several, strict=True):
        assert answer.token_ids == expected.token_ids
        check_logprobs(expected.outputs[0].logprobs, answer.outputs[0].logprobs)
        check_logprobs(
            expected.prompt_logprobs and expected.prompt_logprobs[1:],
            answer.prompt_logprobs and answer.prompt_logprobs[1:],
        )


def check_logprobs(
    expected: tuple[TokenLogprob, ...] | None, reported: tuple[TokenLogprob, ...] | None
) -> None:
    assert (reported is None) == (expected is None)
    for ours, theirs in zip(reported or (), expected or (), strict=True):
        assert (ours.token_id, ours.rank) == (theirs.token_id, theirs.rank)
        assert ours.logprob == pytest.approx(theirs.logprob, abs=TOLERANCE)
        assert [entry.logprob for entry in ours.alternatives] == pytest.approx(
            [entry.logprob for entry in theirs.alternatives], abs=TOLERANCE
        )


@pytest.fixture(scope="module")
def demo_alone() -> list[Completion]:
    return answers(None, 1, make_cases(VOCAB_SIZE))


@pytest.mark.parametrize("size", [2, 4])
def test_the_demo_model_says_the_same_however_many_ranks_share_it(
    demo_alone: list[Completion], size: int
) -> None:
    check_same(demo_alone, answers(None, size, make_cases(VOCAB_SIZE)))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("qwen3_one_kv_head_sharded", 4),
        ("qwen2_heads_that_do_not_fit", 2),
    ],
)
def test_random_checkpoints_say_the_same_on_several_ranks(name: str, size: int, tmp_path: Path) -> None:
    make_checkpoint(BY_NAME[name], tmp_path)
    cases = make_cases(VOCAB_SIZE)
    check_same(answers(str(tmp_path), 1, cases), answers(str(tmp_path), size, cases))


@pytest.fixture(scope="module")
def demo_alone_on_cuda() -> list[Completion]:
    return answers(None, 1, make_cases(VOCAB_SIZE), CUDA_FLAGS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize(
    "flags",
    [
        ["--all-reduce=one-shot"],
        ["--all-reduce=two-shot"],
        ["--all-reduce=one-shot", "--enforce-eager"],
        pytest.param(
            ["--all-reduce=nccl"],
            marks=pytest.mark.skipif(
                torch.cuda.device_count() < 2, reason="NCCL wants a device for each rank, and there is one"
            ),
        ),
    ],
)
def test_two_ranks_on_cuda_say_the_same(
    demo_alone_on_cuda: list[Completion], flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.device_count() < 2:
        monkeypatch.setenv("TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES", "1")
    check_same(demo_alone_on_cuda, answers(None, 2, make_cases(VOCAB_SIZE), [*CUDA_FLAGS, *flags]))
