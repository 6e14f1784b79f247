"""The library and the demo against both services as real processes with the shipped checkpoint."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nanoserve_client as ns
from nanoserve_client.supervisor import LocalServer

pytestmark = pytest.mark.e2e
DEMO = Path(__file__).parents[2] / "experiments" / "demo.py"
COUNT = [ns.Message("user", "Count from 3 to 60.")]
COUNTED = ", ".join(map(str, range(3, 61)))


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer() as server:
        yield server


def test_both_clients_get_the_same_tokens(server: LocalServer) -> None:
    async def ask() -> ns.Completion:
        async with ns.AsyncClient(server.address) as client:
            return await client.chat(COUNT, temperature=0, logprobs=1)

    with ns.Client(server.address) as client:
        mine = client.chat(COUNT, temperature=0, logprobs=1)
        assert client.detokenize(mine.token_ids, skip_special_tokens=True) == mine.text == COUNTED
        assert mine.num_prompt_tokens == len(client.tokenize(COUNT))
    theirs = asyncio.run(ask())
    assert theirs.token_ids == mine.token_ids
    assert [e.token_id for e in theirs.outputs[0].logprobs or ()] == list(theirs.token_ids)


def test_a_stream_goes_on_after_the_executor_was_killed(server: LocalServer) -> None:
    texts: list[str] = []
    with ns.Client(server.address) as client, client.stream(COUNT, temperature=0) as stream:
        for event in stream:
            if isinstance(event, ns.Delta):
                if not texts:
                    os.kill(server.executor_pid, signal.SIGKILL)
                texts.append(event.text)
    assert "".join(texts) == COUNTED


def test_the_demo_ends_with_status_0() -> None:
    done = subprocess.run([sys.executable, str(DEMO)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "14 of 14 right" in done.stdout
    assert " 0 held" in done.stdout
