"""What bad input gets: an error that names the field or the file, with nothing else disturbed."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nanoserve.checkpoint import demo_checkpoint
from nanoserve_client import ApiError, Client, InvalidArgument, NotFound
from nanoserve_client.options import Guided
from nanoserve_client.supervisor import LocalServer

BAD_REQUESTS = [
    ("prompt", "", {}, InvalidArgument),
    ("prompt", [], {}, InvalidArgument),
    ("token_ids.ids[1]", [1, 768], {}, InvalidArgument),
    ("token_ids.ids[0]", [-1], {}, InvalidArgument),
    ("stop.max_tokens", "hi", {"max_tokens": 0}, InvalidArgument),
    ("stop.max_tokens", "hi", {"max_tokens": -1}, InvalidArgument),
    ("stop.max_tokens", "hi", {"max_tokens": 2048}, InvalidArgument),
    ("sampling.temperature", "hi", {"temperature": math.nan}, InvalidArgument),
    ("sampling.temperature", "hi", {"temperature": -0.1}, InvalidArgument),
    ("sampling.temperature", "hi", {"temperature": math.inf}, InvalidArgument),
    ("sampling.top_p", "hi", {"top_p": 0.0}, InvalidArgument),
    ("sampling.top_p", "hi", {"top_p": 1.01}, InvalidArgument),
    ("sampling.top_p", "hi", {"top_p": math.nan}, InvalidArgument),
    ("sampling.top_k", "hi", {"top_k": -1}, InvalidArgument),
    ("sampling.min_p", "hi", {"min_p": 1.5}, InvalidArgument),
    ("sampling.n", "hi", {"n": 0}, InvalidArgument),
    ("output.logprobs", "hi", {"logprobs": 21}, InvalidArgument),
    ("output.prompt_logprobs", "hi", {"prompt_logprobs": -1}, InvalidArgument),
    ("model", "hi", {"model": "no such model"}, NotFound),
    ("prompt", [1] * 2048, {}, InvalidArgument),
    ("guided.regex", "hi", {"guided": Guided(regex="(a")}, InvalidArgument),
    ("stop.ignore_eos", "hi", {"guided": Guided(regex="a"), "ignore_eos": True}, InvalidArgument),
]


@pytest.mark.parametrize(("field", "prompt", "params", "error"), BAD_REQUESTS)
def test_a_bad_request_is_refused_by_field(
    demo_server: LocalServer, field: str, prompt: object, params: dict[str, object], error: type[ApiError]
):
    with Client(demo_server.address) as client:
        steps = client.get_load().num_steps
        with pytest.raises(error) as refusal:
            client.generate(prompt, **params)
        assert any(violation.field.startswith(field) for violation in refusal.value.violations)
        assert client.get_load().num_steps == steps
        assert client.get_load().num_held_blocks == 0


def test_a_prompt_longer_than_the_cache_is_refused():
    with (
        LocalServer(executor_flags=["--verify", "--num-kv-blocks=5", "--max-num-seqs=2"]) as server,
        Client(server.address) as client,
    ):
        assert client.model_info().max_model_len == 65
        with pytest.raises(InvalidArgument, match="prompt"):
            client.generate([1] * 65)
        completion = client.generate([1] * 64, max_tokens=1)
        assert len(completion.token_ids) == 1


def damage_config(folder: Path) -> str:
    (folder / "config.json").write_text("{")
    return "config.json"


def damage_architecture(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    return "config.json"


def truncate_weights(folder: Path) -> str:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])
    return "model.safetensors"


def remove_tokenizer(folder: Path) -> str:
    (folder / "tokenizer.json").unlink()
    return "tokenizer.json"


def run_service(service: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """A service that is expected to end by itself."""
    command = [sys.executable, "-m", service, *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def check_refusal(finished: subprocess.CompletedProcess[str], wanted: str) -> None:
    """Not zero, and one line that says what is wrong."""
    assert finished.returncode not in (0, None)
    lines = [line for line in finished.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, finished.stderr
    assert wanted in lines[0]


@pytest.mark.parametrize(
    ("service", "damage"),
    [
        ("executor_svc", damage_architecture),
        ("executor_svc", truncate_weights),
        ("scheduler_svc", damage_config),
        ("scheduler_svc", remove_tokenizer),
    ],
)
def test_a_damaged_checkpoint_ends_the_process_with_one_line(
    service: str, damage: Callable[[Path], str], tmp_path: Path
):
    folder = tmp_path / "model"
    shutil.copytree(demo_checkpoint(), folder)
    wanted = damage(folder)
    flags = [f"--model={folder}", "--listen=127.0.0.1:0"]
    if service == "scheduler_svc":
        flags.append("--executor=unix:/nonexistent")
    check_refusal(run_service(service, *flags), wanted)


@pytest.mark.parametrize(
    ("service", "flags", "named"),
    [
        ("executor_svc", ["--model=/no/such/folder"], "/no/such/folder"),
        ("executor_svc", ["--block-size=0"], "--block-size"),
        ("executor_svc", ["--dtype=int4"], "--dtype"),
        ("executor_svc", ["--listen=nowhere"], "--listen"),
        ("executor_svc", ["--no-such-flag"], "--no-such-flag"),
        ("scheduler_svc", ["--pipeline-depth=0"], "--pipeline-depth"),
        ("scheduler_svc", ["--executor=nowhere"], "--executor"),
        ("scheduler_svc", ["--listen=0.0.0.0:0", "--executor=unix:/nonexistent"], "--insecure"),
        ("scheduler_svc", ["--no-such-flag"], "--no-such-flag"),
    ],
)
def test_a_wrong_flag_is_named(service: str, flags: list[str], named: str):
    check_refusal(run_service(service, *flags), named)
