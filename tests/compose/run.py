"""Builds the images and tries docker-compose.yml from outside, on a real engine, with `docker compose` alone.

`make test-compose`. Ends with a table of times and sizes, and one JSON line; with the reason, and status 0, where there
is no engine.
"""

import argparse
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from nanoserve_client import Client, Completion

ROOT = Path(__file__).resolve().parents[2]
NODE_CLIENT = ROOT / "client" / "node"
SERVICES = ("executor", "scheduler")
ERASE_LINE = "\x1b[2K"  # which Compose writes before a line of a log, colours or not
UP = ("up", "--detach", "--wait", "--no-build")
QUESTION = [{"role": "user", "content": "What is 123 + 45?"}]
ANSWER = "168"
# Of a few seconds, so that there is a middle in which to kill.
LONG_TOKENS = 700
# What the scheduler's image adds to its base, which with python:3.11-slim makes well under 350 MB.
MOST_SCHEDULER_MB = 200


class Stack:
    """One project of compose: of this folder's files, under a name, a tag and a port of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self._command = ["docker", "compose", "--ansi=never", "--project-directory", str(folder)]
        self._command += ["--file", str(folder / "docker-compose.yml"), "--project-name", name]
        self._env = os.environ | {"NANOSERVE_PORT": str(port), "NANOSERVE_TAG": name}

    def run(self, *words: str, check: bool = True) -> str:
        """What `docker compose WORDS` prints on stdout; ends the test, with all it said, where it fails."""
        done = subprocess.run(
            [*self._command, *words], env=self._env, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            sys.exit(
                f"docker compose {' '.join(words)}: status {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def python(self, service: str, code: str) -> str:
        """What a program prints inside a service's container; "failed" where it does not end well."""
        return self.run("exec", "-T", service, "python", "-c", code, check=False).strip() or "failed"


class Report:
    """What was measured, told as it comes."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Measures a step, in seconds."""
        start = time.monotonic()
        yield
        self.add(f"{name}_seconds", time.monotonic() - start)

    def add(self, name: str, value: float) -> None:
        self.figures[name] = round(value, 1)
        print(f"{name:<36} {value:8.1f}", flush=True)

    def last_line(self) -> str:
        """One JSON object, with what it was measured on."""
        machine = {"cpu": _cpu(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
        return json.dumps({**self.figures, "machine": machine, "date": f"{datetime.now(UTC):%Y-%m-%d}"})


def main() -> int:
    """Runs all of it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--most-down-seconds", type=float, default=10.0, metavar="S", help="default: %(default)s"
    )
    most_down_seconds = parser.parse_args().most_down_seconds
    if reason := _no_engine():
        print(f"test-compose skipped: {reason}")
        return 0
    report = Report()
    stack = Stack(ROOT, f"nanoserve-test-{os.getpid()}")
    try:
        with report.timed("build"):
            stack.run("build")
        check_rebuild(report)
        with report.timed("up"):
            stack.run(*UP)
        check_containers(stack, report)
        check_clients(stack, report)
        check_faults(stack, report)
        check_restart(stack, report)
        check_logs(stack)
        check_down(stack, report, most_down_seconds)
    finally:
        stack.run("down", "--volumes", "--rmi=all", check=False)
    print(report.last_line())
    return 0


def check_rebuild(report: Report) -> None:
    """A change of the code is built in seconds; tried in a copy of what git knows."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    with tempfile.TemporaryDirectory() as folder:
        for name in filter(None, listed.decode().split("\0")):
            target = Path(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
        stack = Stack(Path(folder), f"nanoserve-test-{os.getpid()}-rebuild")
        with Path(folder, "scheduler_svc", "engine.py").open("a") as file:
            file.write(f"\n# {time.time_ns()}\n")
        try:
            with report.timed("rebuild_after_a_change"):
                stack.run("build")
        finally:
            stack.run("down", "--rmi=all", check=False)


def check_containers(stack: Stack, report: Report) -> None:
    """What the containers may not do, and how large they are."""
    for service in SERVICES:
        assert stack.python(service, "import os; print(os.getuid())") == "10001", service
        assert "Read-only" in stack.python(service, "try: open('/x', 'w')\nexcept OSError as e: print(e)"), (
            service
        )
        code = (
            "import pathlib; print(sum(f.lstat().st_size for f in pathlib.Path('/opt/nanoserve').rglob('*')))"
        )
        report.add(f"{service}_added_mb", int(stack.python(service, code)) / 1e6)
    assert report.figures["scheduler_added_mb"] < MOST_SCHEDULER_MB
    assert stack.python("scheduler", "import torch") == "failed", "torch is in the scheduler's image"
    config = json.loads(stack.run("config", "--format=json"))
    assert list(config["services"]["executor"]["networks"]) == ["link"]
    assert config["networks"]["link"]["internal"]
    assert stack.run("port", "scheduler", "50051").strip() == stack.address
    assert stack.run("port", "executor", "50061", check=False) == "", "the executor is published"
    sizes = {image["Repository"]: image["Size"] for image in json.loads(stack.run("images", "--format=json"))}
    for name, size in sizes.items():
        report.add(f"{name.removeprefix('nanoserve-')}_image_mb", size / 1e6)


def check_clients(stack: Stack, report: Report) -> None:
    """Both clients are answered."""
    with Client(stack.address) as client, report.timed("python_answer"):
        assert client.chat(QUESTION).text == ANSWER
    if shutil.which("node") is None or not (NODE_CLIENT / "node_modules").is_dir():
        print("the Node client skipped: `make test-node` installs what it needs")
        return
    with report.timed("node_answer"):
        command = [
            "node",
            "examples/generate.js",
            "--server",
            stack.address,
            "--chat",
            QUESTION[0]["content"],
        ]
        answer = subprocess.run(
            command, cwd=NODE_CLIENT, capture_output=True, text=True, timeout=60, check=True
        )
    assert answer.stdout.strip() == ANSWER, answer


def check_faults(stack: Stack, report: Report) -> None:
    """An executor that is killed, and then a scheduler, cost a stream nothing but time."""
    with Client(stack.address) as client:
        undisturbed = long_answer(client)
        for service in SERVICES:
            answers: list[Completion] = []
            reader = threading.Thread(
                target=lambda kept=answers: kept.append(long_answer(client)), daemon=True
            )
            with report.timed(f"stream_with_the_{service}_killed"):
                reader.start()
                while client.get_load().num_running_requests == 0:
                    assert reader.is_alive(), "the stream is over too soon"
                # From inside: an engine takes its own `kill` for an order not to start again.
                stack.run("exec", "-T", service, "sh", "-c", "kill -9 -1", check=False)
                assert reader.is_alive(), "the stream was over before the kill"
                reader.join(120)
            assert answers, "the stream does not end"
            assert answers[0].token_ids == undisturbed.token_ids
            assert len(answers[0].token_ids) == LONG_TOKENS
            stack.run(*UP, "--no-recreate")


def long_answer(client: Client) -> Completion:
    """The same tokens each time."""
    return client.generate("1, 2, 3,", temperature=0, max_tokens=LONG_TOKENS, ignore_eos=True, timeout=110)


def check_restart(stack: Stack, report: Report) -> None:
    """A scheduler that is told to stop ends well, and serves again when it is started."""
    with report.timed("restart_of_the_scheduler"):
        stack.run("stop", "scheduler")
        (stopped,) = stack.run("ps", "--all", "--format=json", "scheduler").splitlines()
        stack.run(*UP, "--no-recreate")
    assert json.loads(stopped)["ExitCode"] == 0
    with Client(stack.address) as client:
        assert client.chat(QUESTION, timeout=60).text == ANSWER


def check_logs(stack: Stack) -> None:
    """Every line is a JSON object, and none tells of a bug."""
    for service in SERVICES:
        lines = stack.run("logs", "--no-log-prefix", "--no-color", service).splitlines()
        assert lines, service
        for line in lines:
            entry = json.loads(line.removeprefix(ERASE_LINE))
            assert entry["level"] in ("info", "warning"), line


def check_down(stack: Stack, report: Report, most_seconds: float) -> None:
    """Both services end when they are told to; killed after their graces, they would take 15 s and more."""
    with report.timed("down"):
        stack.run("down")
    assert report.figures["down_seconds"] < most_seconds, "the stack takes too long to go down"


def _no_engine() -> str | None:
    """Why there is no engine to try it with; None where there is one."""
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return "there is no docker command"
        if done.returncode:
            return f"`{' '.join(command)}` fails: {(done.stderr.strip() or 'no reason').splitlines()[-1]}"
    return None


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
