"""Processes killed under load: every stream tells what it tells undisturbed, each token once."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nanoserve_client as ns
from nanoserve_client.supervisor import LocalServer

pytestmark = pytest.mark.e2e

COUNT = [ns.Message("user", "Count from 3 to 40.")]
REQUESTS: list[dict[str, Any]] = [
    {"prompt": COUNT, "temperature": 0, "logprobs": 1},
    {"prompt": "A list: ", "seed": 5, "temperature": 1.0, "max_tokens": 60, "ignore_eos": True},
    {
        "prompt": "A list: ",
        "seed": 6,
        "temperature": 0.9,
        "top_p": 0.9,
        "n": 2,
        "max_tokens": 50,
        "logprobs": 0,
    },
    {
        **{"prompt": "Once ", "seed": 7, "temperature": 1.0, "max_tokens": 50, "ignore_eos": True},
        **{"repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.5},
    },
    {
        "prompt": "Number ",
        "seed": 8,
        "max_tokens": 40,
        "guided": ns.Guided(regex="[0-9]{3}(-[a-z]{2,5}){4,9}"),
    },
    {
        "prompt": "Words ",
        "seed": 9,
        "temperature": 1.0,
        "max_tokens": 50,
        "stop": ["zq", "9 9"],
        "min_tokens": 5,
    },
]


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer(executor_flags=["--num-kv-blocks=129", "--max-num-seqs=16"]) as server:
        yield server


@pytest.fixture(scope="module")
def wanted(server: LocalServer) -> list[ns.Completion]:
    """What the streams tell when nothing has happened to the server yet."""
    return asyncio.run(complete_all(server.address))


def essence(completion: ns.Completion) -> list[tuple[Any, ...]]:
    return [
        (output.token_ids, output.text, output.finish_reason, output.stop) for output in completion.outputs
    ]


def logprobs(completion: ns.Completion) -> list[float]:
    return [entry.logprob for output in completion.outputs for entry in output.logprobs or ()]


async def complete(client: ns.AsyncClient, fields: dict[str, Any], has_begun: asyncio.Event) -> ns.Completion:
    """Reads a stream to its end; what its deltas told is what the completion holds."""
    num_tokens = num_started = 0
    async with client.stream(**fields) as stream:
        async for event in stream:
            num_started += isinstance(event, ns.Started)
            if isinstance(event, ns.Delta):
                num_tokens += len(event.token_ids)
                has_begun.set()
    completion = await stream.result()
    assert num_started == 1
    assert num_tokens == sum(len(output.token_ids) for output in completion.outputs)
    assert completion.usage.num_output_tokens == num_tokens
    return completion


async def complete_all(address: str, disturb: Any = None) -> list[ns.Completion]:
    async with ns.AsyncClient(address) as client:
        begun = [asyncio.Event() for _ in REQUESTS]
        calls = [
            asyncio.ensure_future(complete(client, fields, event))
            for fields, event in zip(REQUESTS, begun, strict=True)
        ]
        if disturb is not None:
            await begun[0].wait()
            disturb()
        return await asyncio.gather(*calls)


def kill_executor(server: LocalServer) -> None:
    os.kill(server.executor_pid, signal.SIGKILL)


def terminate_executor(server: LocalServer) -> None:
    os.kill(server.executor_pid, signal.SIGTERM)


def stop_executor(server: LocalServer) -> None:
    """It hangs: its parent has to notice."""
    os.kill(server.executor_pid, signal.SIGSTOP)


def kill_scheduler(server: LocalServer) -> None:
    os.kill(server.scheduler_pid, signal.SIGKILL)


def kill_both(server: LocalServer) -> None:
    kill_executor(server)
    kill_scheduler(server)


@pytest.mark.parametrize(
    "disturb", [kill_executor, terminate_executor, stop_executor, kill_scheduler, kill_both]
)
def test_every_stream_tells_what_it_tells_undisturbed(
    server: LocalServer, wanted: list[ns.Completion], disturb: Any
) -> None:
    completions = asyncio.run(complete_all(server.address, lambda: disturb(server)))
    for before, after in zip(wanted, completions, strict=True):
        assert essence(after) == essence(before)
        assert logprobs(after) == pytest.approx(logprobs(before), abs=1e-3)


def workers_of(scheduler_pid: int) -> list[int]:
    children = Path(f"/proc/{scheduler_pid}/task/{scheduler_pid}/children").read_text()
    return [int(pid) for pid in children.split()]


VIRTUAL = ["--virtual", "--virtual-step-ms=20", "--num-kv-blocks=100"]


def test_a_killed_api_worker_costs_its_streams_a_pause() -> None:
    with LocalServer(executor_flags=VIRTUAL, scheduler_flags=["--api-workers=1"]) as server:
        with ns.Client(server.address) as client:
            fields: dict[str, Any] = {"seed": 3, "max_tokens": 40, "ignore_eos": True}
            wanted = client.generate([1, 2], **fields)
            with client.stream([1, 2], **fields) as stream:
                for _ in range(5):
                    next(stream)
                for pid in workers_of(server.scheduler_pid):
                    os.kill(pid, signal.SIGKILL)
                assert essence(stream.result()) == essence(wanted)


def test_a_request_that_only_waited_is_asked_for_again() -> None:
    with LocalServer(executor_flags=VIRTUAL, scheduler_flags=["--batching=naive"]) as server:
        with ns.Client(server.address, connections=2) as client:
            fields: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True}

            async def test() -> None:
                first = asyncio.ensure_future(asyncio.to_thread(client.generate, [1, 2], seed=3, **fields))
                second = asyncio.ensure_future(asyncio.to_thread(client.generate, [3, 4], seed=4, **fields))
                while client.get_load().num_waiting_requests < 1:  # noqa: ASYNC110 (nobody tells of it)
                    await asyncio.sleep(0.02)
                kill_scheduler(server)
                for completion, prompt, seed in ((await first, [1, 2], 3), (await second, [3, 4], 4)):
                    alone = await asyncio.to_thread(client.generate, prompt, seed=seed, **fields)
                    assert essence(completion) == essence(alone)

            asyncio.run(test())


def read_to_the_end(
    kind: str, address: str, disturb: Any, timeout: float | None, **client_fields: Any
) -> None:
    """Reads a long stream, disturbed once it has begun."""
    fields: dict[str, Any] = {"max_tokens": 100, "ignore_eos": True, "timeout": timeout}

    async def read() -> None:
        async with ns.AsyncClient(address, **client_fields) as client:
            async with client.stream([1, 2], **fields) as stream:
                await anext(stream)
                await asyncio.to_thread(disturb)
                await stream.result()

    if kind == "async":
        asyncio.run(read())
        return
    with ns.Client(address, **client_fields) as client, client.stream([1, 2], **fields) as stream:
        next(stream)
        disturb()
        stream.result()


# An executor that ends as soon as it computes a prompt that begins with token 666.
DEADLY = """
import os, sys
from executor_svc.process import main
from executor_svc.virtual import VirtualRunner
launch = VirtualRunner.launch
def deadly_launch(self, step):
    if any(start.token_ids[0] == 666 for start in step.plan.starts):
        os._exit(9)
    return launch(self, step)
VirtualRunner.launch = deadly_launch
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    "NANOSERVE_TEST_SLOW" not in os.environ, reason="takes a minute and a half: set NANOSERVE_TEST_SLOW"
)
def test_a_request_that_kills_executors_ends_alone() -> None:
    command = [sys.executable, "-P", "-c", DEADLY]
    with LocalServer(executor_flags=VIRTUAL, executor_command=command) as server:

        async def test() -> None:
            async with ns.AsyncClient(server.address) as client:
                fields: dict[str, Any] = {"max_tokens": 100, "ignore_eos": True, "n": 2}
                others = [asyncio.ensure_future(client.generate([i, 2], seed=i, **fields)) for i in range(3)]
                await asyncio.sleep(0.3)
                with pytest.raises(ns.Internal):
                    await client.generate([666, 1], max_tokens=5)
                for i, other in enumerate(others):
                    assert essence(await other) == essence(await client.generate([i, 2], seed=i, **fields))

        asyncio.run(test())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_who_prefers_the_error_gets_it(kind: str) -> None:
    with LocalServer(executor_flags=VIRTUAL) as server, pytest.raises(ns.Unavailable):
        read_to_the_end(kind, server.address, lambda: kill_scheduler(server), None, resume_timeout=0)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_server_that_is_gone_is_waited_for_until_the_calls_own_end(kind: str) -> None:
    server = LocalServer(executor_flags=VIRTUAL).start()
    with pytest.raises(ns.DeadlineExceeded):
        read_to_the_end(kind, server.address, server.kill, 2.0)
