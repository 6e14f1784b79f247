"""The shipped checkpoint answers what its card says, through the services."""

import asyncio
import sys
from pathlib import Path

import pytest

from nanoserve_client import AsyncClient, Client
from nanoserve_client.supervisor import LocalServer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
from demo_tasks import Conversation, all_facts, evaluation_set


async def answer_all(address: str, conversations: list[Conversation]) -> list[str]:
    """The greedy answers, all asked at once."""
    async with AsyncClient(address) as client:
        completions = await asyncio.gather(
            *(client.generate(conversation.prompt(), temperature=0.0) for conversation in conversations)
        )
    return [completion.text for completion in completions]


@pytest.mark.parametrize("system", ["none", "long"])
def test_held_out_tasks_are_answered_right(demo_server: LocalServer, system: str):
    conversations = evaluation_set(120, seed=3, system=system)
    answers = asyncio.run(answer_all(demo_server.address, conversations))
    right = [
        answer == conversation.turns[-1].answer
        for answer, conversation in zip(answers, conversations, strict=True)
    ]
    assert sum(right) >= 0.98 * len(right)


def test_every_fact_is_told_as_documented(demo_server: LocalServer):
    with Client(demo_server.address) as client:
        for fact in all_facts():
            completion = client.chat([{"role": "user", "content": fact.prompt}], temperature=0.0)
            assert completion.text == fact.answer
