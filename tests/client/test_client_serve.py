"""`nanoserve serve`: which service gets which flag, what it prints, how it ends."""

import argparse
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import executor_svc.config
import scheduler_svc.config
from nanoserve_client.cli import build_parser
from nanoserve_client.commands.serve import BOTH_FLAGS, EXECUTOR_FLAGS, SCHEDULER_FLAGS, service_flags
from nanoserve_client.forward import LOG_LEVELS, LogForwarder, at_least

NANOSERVE = (sys.executable, "-m", "nanoserve_client")
STAND_IN = Path(__file__).with_name("stand_in_service.py")
# serve sets these itself, or has no use for them: its executor is its own.
NOT_PASSED_ON = {"-h", "--help", "--model", "--listen", "--executor", "--take-over", "--log-level"}

# What joins the two is a private unix socket.
LINK_FLAGS = {
    *("--tls-cert", "--tls-key", "--tls-client-ca", "--secret-file", "--insecure"),
    *("--executor-tls-ca", "--executor-tls-cert", "--executor-tls-key", "--executor-secret-file"),
}


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    return {flag for action in parser._actions for flag in action.option_strings} - NOT_PASSED_ON


def test_each_service_has_the_flags_that_serve_passes_on_and_no_others() -> None:
    both = {flag.name for flag in BOTH_FLAGS}
    executor = {flag.name for flag in EXECUTOR_FLAGS}
    scheduler = {flag.name for flag in SCHEDULER_FLAGS}
    assert executor | both == flags_of(executor_svc.config.build_parser()) - LINK_FLAGS
    link_flags = {flag for flag in LINK_FLAGS if flag.startswith("--executor-")}
    assert scheduler | both == flags_of(scheduler_svc.config.build_parser()) - link_flags
    assert not executor & scheduler


def test_serve_gives_each_flag_to_the_service_that_has_it() -> None:
    command = [
        "serve",
        "--block-size",
        "8",
        "--virtual",
        "--seed=-1",
        "--no-enable-prefix-caching",
        "--max-num-batched-tokens=512",
    ]
    arguments = build_parser().parse_args(command)
    executor = service_flags(arguments, BOTH_FLAGS + EXECUTOR_FLAGS)
    scheduler = service_flags(arguments, BOTH_FLAGS + SCHEDULER_FLAGS)
    assert sorted(executor) == [
        "--block-size=8",
        "--max-num-batched-tokens=512",
        "--seed=-1",
        "--virtual",
    ]
    assert sorted(scheduler) == ["--max-num-batched-tokens=512", "--no-enable-prefix-caching"]


@pytest.fixture
def stand_ins(tmp_path: Path) -> dict[str, str]:
    """An environment in which both services are stand-ins."""
    for package in ("executor_svc", "scheduler_svc"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        (tmp_path / package / "__main__.py").write_text(f"import runpy\nrunpy.run_path({str(STAND_IN)!r})\n")
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def test_serve_serves_until_sigterm(stand_ins: dict[str, str]) -> None:
    process = subprocess.Popen(
        [*NANOSERVE, "serve", "--listen=127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=stand_ins,
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        assert first.startswith("nanoserve serves at 127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        entries = [json.loads(line) for line in process.stderr]
    assert {entry["service"] for entry in entries} == {"executor", "scheduler", "supervisor"}
    listening = {entry["service"]: entry["address"] for entry in entries if entry["event"] == "listening"}
    assert f"at {listening['scheduler']};" in first


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_the_log_level_decides_what_is_shown_and_not_whether_it_serves(
    stand_ins: dict[str, str], level: str
) -> None:
    process = subprocess.Popen(
        [*NANOSERVE, "serve", "--listen=127.0.0.1:0", f"--log-level={level}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=stand_ins,
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("nanoserve serves at 127.0.0.1:")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        shown = {json.loads(line)["service"] for line in process.stderr}
    everything = {"executor", "scheduler", "supervisor"}
    assert shown == (everything if level in ("debug", "info") else set())


def test_severe_and_unstructured_lines_are_always_shown() -> None:
    shown: list[str] = []
    log = at_least("error", lambda service, line: shown.append(line))
    lines = [json.dumps({"event": "e", "level": level}) for level in (*LOG_LEVELS, "critical")]
    for line in (*lines, "Traceback", '{"event": "without a level"}'):
        log("executor", line)
    assert shown == [*lines[3:], "Traceback", '{"event": "without a level"}']


def test_serve_tells_why_a_service_does_not_start(stand_ins: dict[str, str], tmp_path: Path) -> None:
    refusing = 'import sys\nsys.exit("model.safetensors is damaged")\n'
    (tmp_path / "executor_svc" / "__main__.py").write_text(refusing)
    done = subprocess.run(
        [*NANOSERVE, "serve", "--listen=127.0.0.1:0"],
        env=stand_ins,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("damaged") == 1
    assert done.stderr.splitlines()[-1] == "nanoserve serve: model.safetensors is damaged"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_logs_are_pretty_on_a_terminal_and_json_elsewhere() -> None:
    line = '{"event": "listening", "address": "a", "level": "warning", "timestamp": "t", "service": "x"}'
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        forward = LogForwarder(stream)
        forward("executor", line)
        forward("scheduler", "a plain line")
        assert "plain" not in stream.getvalue()  # held back while it may be the last
        forward.started()
        forward("scheduler", "another")
    assert terminal.getvalue() == (
        "executor   | warning: listening address=a\nscheduler  | a plain line\nscheduler  | another\n"
    )
    entries = [json.loads(text) for text in pipe.getvalue().splitlines()]
    assert [(e["service"], e["event"]) for e in entries] == [
        ("executor", "listening"),
        ("scheduler", "a plain line"),
        ("scheduler", "another"),
    ]
