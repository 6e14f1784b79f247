"""The library and the demo against both services as real processes with the shipped checkpoint."""

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nanoserve_client as ns
from nanoserve_client.cli import main
from nanoserve_client.connection import DEFAULT_ADDRESS
from nanoserve_client.supervisor import LocalServer

pytestmark = pytest.mark.e2e
README = (Path(__file__).parents[2] / "README.md").read_text()
DEMO = Path(__file__).parents[2] / "experiments" / "demo.py"
COUNT = [ns.Message("user", "Count from 3 to 40.")]
COUNTED = ", ".join(map(str, range(3, 41)))


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer(executor_flags=["--num-kv-blocks=129"]) as server:
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


def test_the_python_of_the_readme_answers_its_question(
    server: LocalServer, capsys: pytest.CaptureFixture[str]
) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert snippets
    for snippet in snippets:
        assert DEFAULT_ADDRESS in snippet
        exec(snippet.replace(DEFAULT_ADDRESS, server.address), {})
        assert capsys.readouterr().out.split() == ["168", "168"]  # as a whole, and as a stream


def test_the_command_line_of_the_readme_answers_its_question(
    server: LocalServer, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = re.findall(r"^\$ nanoserve (generate .*)", README, re.MULTILINE)
    assert lines
    for line in lines:
        assert main([*shlex.split(line, comments=True), "--server", server.address]) == 0
        assert capsys.readouterr() == ("168\n", "")


@pytest.mark.parametrize(("number", "level"), [(signal.SIGTERM, "info"), (signal.SIGINT, "warning")])
def test_serve_finishes_its_streams_when_told_to_end(number: signal.Signals, level: str) -> None:
    command = [sys.executable, "-m", "nanoserve_client", "serve", "--virtual", "--virtual-step-ms=20"]
    process = subprocess.Popen(
        [*command, "--listen=127.0.0.1:0", f"--log-level={level}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        address = process.stdout.readline().removeprefix("nanoserve serves at ").partition(";")[0]
        with ns.Client(address) as client, client.stream([5], max_tokens=80, ignore_eos=True) as stream:
            while not isinstance(next(stream), ns.Delta):
                pass
            process.send_signal(number)
            assert len(stream.result().token_ids) == 80
        _, logged = process.communicate(timeout=30)
    assert process.returncode == 0, logged
    events = [json.loads(line)["event"] for line in logged.splitlines()]
    assert ("draining" in events) == (level == "info")


def test_a_second_signal_ends_serve_without_a_drain() -> None:
    command = [sys.executable, "-m", "nanoserve_client", "serve", "--virtual", "--virtual-step-ms=100"]
    process = subprocess.Popen(
        [*command, "--listen=127.0.0.1:0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        address = process.stdout.readline().removeprefix("nanoserve serves at ").partition(";")[0]
        with (
            ns.Client(address, resume_timeout=0) as client,
            client.stream([5], max_tokens=1000, ignore_eos=True) as stream,
        ):
            while not isinstance(next(stream), ns.Delta):
                pass
            process.send_signal(signal.SIGTERM)
            for line in process.stderr:
                if "draining" in line:
                    break
            process.send_signal(signal.SIGTERM)
            with pytest.raises(ns.Unavailable):
                stream.result()
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_the_demo_ends_with_status_0() -> None:
    done = subprocess.run([sys.executable, str(DEMO)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "14 of 14 right" in done.stdout
    assert " 0 held" in done.stdout
