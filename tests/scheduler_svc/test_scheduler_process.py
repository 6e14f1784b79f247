"""The scheduler as a process, beside a virtual executor as another."""

import re
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest
from processes import running
from scheduler_harness import generate_request

from executor_svc.virtual import virtual_token
from nanoserve.checkpoint import demo_checkpoint
from nanoserve.v1.inference_pb2_grpc import InferenceServiceStub

pytestmark = pytest.mark.e2e
DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
_WAIT_SECONDS = 30


def virtual_executor(folder: Path, *flags: str) -> Any:
    return running("executor_svc", "--virtual", f"--listen=unix:{folder}/executor", *flags)


def scheduler(folder: Path, *flags: str) -> Any:
    return running("scheduler_svc", "--listen=127.0.0.1:0", f"--executor=unix:{folder}/executor", *flags)


def start_stream(address: str, num_tokens: int) -> tuple[grpc.Channel, Any]:
    channel = grpc.insecure_channel(address)
    request = generate_request([1, 2, 3], seed=11, max_tokens=num_tokens)
    return channel, InferenceServiceStub(channel).Generate(request, timeout=_WAIT_SECONDS)


def expected(num_tokens: int) -> list[int]:
    return [virtual_token(11, 3 + i, 768) for i in range(num_tokens)]


@pytest.mark.parametrize("api_workers", [0, 2])
def test_sigterm_finishes_what_runs_and_exits_with_0(tmp_path: Path, api_workers: int):
    with virtual_executor(tmp_path), scheduler(tmp_path, f"--api-workers={api_workers}") as server:
        address = server.event("listening")["address"]
        assert not address.endswith(":0")
        channel, call = start_stream(address, 300)
        with channel:
            assert next(call).WhichOneof("event") == "started"
            server.process.send_signal(signal.SIGTERM)
            assert [i for message in call for i in message.delta.token_ids] == expected(300)
        assert server.end() == 0
        line = server.event("request")
        assert (line["num_prompt_tokens"], line["num_output_tokens"]) == (3, 300)
        assert line["finish_reasons"] == ["length"]
        assert line["total_seconds"] >= line["first_token_seconds"] >= line["queue_seconds"] > 0


@pytest.mark.parametrize("api_workers", [0, 1])
def test_the_log_line_of_a_request_has_the_fields_that_are_documented(tmp_path: Path, api_workers: int):
    section = DOCUMENT.read_text().partition("## The log line of a request")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall("`([a-z_]+)`", row)}
    with virtual_executor(tmp_path), scheduler(tmp_path, f"--api-workers={api_workers}") as server:
        channel, call = start_stream(server.event("listening")["address"], 3)
        with channel:
            list(call)
        assert set(server.event("request")) == documented - (set() if api_workers else {"worker"})


@pytest.mark.parametrize("api_workers", [0, 2])
def test_sigterm_gives_up_what_takes_too_long(tmp_path: Path, api_workers: int):
    with (
        virtual_executor(tmp_path, "--virtual-step-ms=20"),
        scheduler(tmp_path, "--drain-timeout=0.2", f"--api-workers={api_workers}") as server,
    ):
        channel, call = start_stream(server.event("listening")["address"], 2000)
        with channel:
            next(call)
            server.process.send_signal(signal.SIGTERM)
            messages = list(call)
        assert messages[-1].WhichOneof("event") == "completed"
        assert server.end() == 0
        assert server.event("request")["finish_reasons"] == ["aborted"]


def test_a_killed_executor_costs_a_pause_and_no_token(tmp_path: Path):
    with scheduler(tmp_path) as server:
        with virtual_executor(tmp_path) as executor:
            channel, call = start_stream(server.event("listening")["address"], 1500)
            token_ids: list[int] = []
            while len(token_ids) < 100:
                token_ids += next(call).delta.token_ids
            executor.end(signal.SIGKILL)
        with virtual_executor(tmp_path), channel:
            token_ids += [i for message in call for i in message.delta.token_ids]
        assert token_ids == expected(1500)
        assert server.end(signal.SIGINT) == 0


def test_an_executor_that_cannot_be_reached_is_one_line_and_a_failure(tmp_path: Path):
    with scheduler(tmp_path, "--executor-loss-timeout=0.2") as server:
        assert server.end() == 1
        assert server.event("waiting for the executor")["level"] == "warning"
        _, line = server.lines
        assert line.startswith("nanoserve-scheduler: error: --executor: ")


def test_another_model_at_the_executor_is_one_line_and_a_failure(tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in demo_checkpoint().iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "generation_config.json").write_text("{}")
    with virtual_executor(tmp_path), scheduler(tmp_path, f"--model={folder}") as server:
        assert server.end() == 1
        (line,) = server.lines
        assert "model fingerprint" in line
