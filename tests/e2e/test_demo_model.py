"""The shipped checkpoint answers what its card says, through the services."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from nanoserve_client import AsyncClient
from nanoserve_client.supervisor import LocalServer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
from demo_tasks import all_facts, evaluation_set


async def answer_all(address: str, prompts: Sequence[str | list[dict[str, str]]]) -> list[str]:
    """The greedy answers, all asked at once."""
    async with AsyncClient(address) as client:
        completions = await asyncio.gather(*(client.generate(prompt, temperature=0.0) for prompt in prompts))
    return [completion.text for completion in completions]


@pytest.mark.parametrize(("system", "count"), [("none", 60), ("long", 24)])
def test_held_out_tasks_are_answered_right(demo_server: LocalServer, system: str, count: int):
    conversations = evaluation_set(count, seed=3, system=system)
    answers = asyncio.run(answer_all(demo_server.address, [each.prompt() for each in conversations]))
    wrong = [
        (conversation.turns[-1].prompt, answer)
        for answer, conversation in zip(answers, conversations, strict=True)
        if answer != conversation.turns[-1].answer
    ]
    assert len(wrong) <= 0.02 * count, wrong


def test_every_fact_is_told_as_documented(demo_server: LocalServer):
    facts = all_facts()
    prompts = [[{"role": "user", "content": fact.prompt}] for fact in facts]
    assert asyncio.run(answer_all(demo_server.address, prompts)) == [fact.answer for fact in facts]
