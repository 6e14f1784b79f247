"""A rank that dies or stops takes its executor down with it, and the supervisor brings all ranks back."""

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from nanoserve_client import Client
from nanoserve_client.supervisor import LocalServer

ANY_FLAGS = [
    "--dtype=float32",
    "--num-kv-blocks=129",
    "--max-num-seqs=8",
    "--tensor-parallel-size=2",
]
FLAGS = ["--device=cpu", *ANY_FLAGS]
LIMIT_SECONDS = 5.0
PROMPT = [5, 60, 7, 201]
NUM_STREAMS = 4


def ranks_of(executor_pid: int) -> list[int]:
    """Process ids by rank."""
    found = subprocess.run(["pgrep", "-P", str(executor_pid)], capture_output=True, text=True, check=True)
    return [executor_pid, *map(int, found.stdout.split())]


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"


def seconds_until_gone(pids: list[int]) -> float:
    begin = time.monotonic()
    while any(map(is_running, pids)) and time.monotonic() - begin < 2 * LIMIT_SECONDS:
        time.sleep(0.02)
    return time.monotonic() - begin


def answer(client: Client, number: int) -> tuple[int, ...]:
    """The tokens of a stream; every other one chooses them the second way."""
    penalty = 0.5 if number % 2 == 0 else 0.0
    params = {"temperature": 1.5, "frequency_penalty": penalty, "seed": number}
    return client.generate(PROMPT, max_tokens=120, ignore_eos=True, **params).token_ids


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two CUDA devices"),
            ],
        ),
    ],
)
def test_every_stream_survives_the_death_and_the_hang_of_any_rank(device: str) -> None:
    flags = [f"--device={device}", *ANY_FLAGS]
    with LocalServer(executor_flags=flags) as server, Client(server.address) as client:
        expected = [answer(client, number) for number in range(NUM_STREAMS)]
        assert len(set(expected[0])) > 20, "the test means nothing where all tokens are alike"
        for rank, number in ((0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)):
            with ThreadPoolExecutor(NUM_STREAMS) as pool:
                calls = [pool.submit(answer, client, index) for index in range(NUM_STREAMS)]
                while client.get_load().num_running_requests < NUM_STREAMS:
                    time.sleep(0.01)
                pids = ranks_of(server.executor_pid)
                assert len(pids) == 2
                os.kill(pids[rank], number)
                assert seconds_until_gone(pids) < LIMIT_SECONDS
                assert [call.result() for call in calls] == expected
        pids = ranks_of(server.executor_pid)
    assert not any(map(is_running, pids))


# What Python runs first in every process: rank 1 cannot read a plan once there is a certain file.
_FAULT = """
import os

if os.environ.get("RANK") == "1":
    from executor_svc import wire

    decode_plan = wire.decode_plan

    def fail_once(*arguments):
        if os.path.exists({flag!r}):
            os.remove({flag!r})
            raise RuntimeError("injected")
        return decode_plan(*arguments)

    wire.decode_plan = fail_once
"""


def test_a_rank_that_fails_outside_the_model_takes_all_down_and_the_stream_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "fail"
    (tmp_path / "sitecustomize.py").write_text(_FAULT.format(flag=str(flag)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with LocalServer(executor_flags=FLAGS) as server, Client(server.address) as client:
        expected = answer(client, 0)
        pids = ranks_of(server.executor_pid)
        flag.touch()
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(answer, client, 0)
            while flag.exists():
                time.sleep(0.01)
            assert seconds_until_gone(pids) < LIMIT_SECONDS
            assert call.result() == expected
