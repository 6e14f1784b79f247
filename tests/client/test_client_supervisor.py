"""A local server: its start, its restarts and its end. The two services are small stand-ins, but real processes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nanoserve_client import InvalidRequest, ServerStartError
from nanoserve_client.health import is_serving
from nanoserve_client.service import backoff_seconds
from nanoserve_client.supervisor import LocalServer, private_folder

STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in_service.py")))
Lines = list[tuple[str, str]]


def local_server(lines: Lines | None = None, **options: Any) -> LocalServer:
    def log(service: str, line: str) -> None:
        if lines is not None:
            lines.append((service, line))

    return LocalServer(executor_command=STAND_IN, scheduler_command=STAND_IN, log=log, **options)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with local_server() as server:
        yield server


def test_both_serve_once_started(server: LocalServer) -> None:
    assert is_serving(server.address)
    assert is_serving(server.executor_address)
    assert server.address.startswith("127.0.0.1:")
    assert not server.address.endswith(":0")
    assert server.executor_pid != server.scheduler_pid


def test_the_socket_lies_where_no_other_user_can_reach_it(server: LocalServer) -> None:
    folder = Path(server.executor_address.removeprefix("unix:")).parent
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("service", ["executor", "scheduler"])
def test_a_killed_service_comes_back_at_the_same_address(server: LocalServer, service: str) -> None:
    def pid() -> int:
        return server.executor_pid if service == "executor" else server.scheduler_pid

    address = server.executor_address if service == "executor" else server.address
    others = {server.executor_pid, server.scheduler_pid} - {pid()}
    killed = pid()
    os.kill(killed, signal.SIGKILL)
    assert eventually(lambda: pid() != killed and is_serving(address))
    assert others < {server.executor_pid, server.scheduler_pid}  # the other one was left alone


def test_flags_and_addresses_reach_the_service_they_are_for() -> None:
    lines: Lines = []
    with local_server(lines, model="dir", executor_flags=["--a=1"], scheduler_flags=["--b"]) as server:
        pass
    seen = {
        service: json.loads(line)["argv"]
        for service, line in lines
        if '"listening"' in line and line[0] == "{"
    }
    assert seen == {
        "executor": ["--model=dir", "--a=1", "--log-level=info", f"--listen={server.executor_address}"],
        "scheduler": [
            "--model=dir",
            "--b",
            "--log-level=info",
            "--listen=127.0.0.1:0",
            f"--executor={server.executor_address}",
        ],
    }


def test_the_end_leaves_no_process_and_no_file() -> None:
    with local_server() as server:
        pids = [server.executor_pid, server.scheduler_pid]
        socket = Path(server.executor_address.removeprefix("unix:"))
        assert socket.exists()
    assert not any(map(alive, pids))
    assert not socket.parent.exists()
    assert not server.killed
    server.stop()  # once more does no harm


def test_the_scheduler_ends_before_the_executor_is_asked_to() -> None:
    with local_server(executor_flags=[], scheduler_flags=["--deaf"], grace_seconds=60) as server:
        executor, scheduler = server.executor_pid, server.scheduler_pid
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        time.sleep(0.3)
        assert alive(scheduler)  # drains, in its way
        assert alive(executor)
        server.kill()  # the second Ctrl-C
        stopping.join()
        assert not alive(executor)
        assert not alive(scheduler)


def test_a_service_that_outlasts_the_grace_is_killed() -> None:
    with local_server(executor_flags=["--deaf"], grace_seconds=0.2) as server:
        pid = server.executor_pid
    assert not alive(pid)
    assert server.killed


@pytest.mark.parametrize("service", ["executor", "scheduler"])
def test_a_start_that_fails_tells_the_last_line_and_leaves_nothing(service: str, tmp_path: Path) -> None:
    litter = tmp_path / "pid"
    flags: dict[str, Any] = {
        "executor_flags": [f"--litter={litter}"],
        "scheduler_flags": [f"--litter={litter}"],
    }
    flags[f"{service}_flags"] = ["--bad"]
    with pytest.raises(ServerStartError, match=r"model.safetensors is damaged$") as caught:
        local_server(**flags).start()
    assert (caught.value.service, caught.value.exit_status) == (service, 1)
    if litter.exists():  # the other one had got so far
        assert eventually(lambda: not alive(int(litter.read_text())))


def test_a_command_that_is_not_there_is_named() -> None:
    server = LocalServer(executor_command=("/no/such/program",), scheduler_command=STAND_IN)
    with pytest.raises(ServerStartError, match="/no/such/program: No such file"):
        server.start()


@pytest.mark.parametrize("options", [{"log_level": "error"}, {"executor_flags": ["--log-level=error"]}])
def test_a_level_above_info_does_not_keep_it_from_starting(options: dict[str, Any]) -> None:
    lines: Lines = []
    with local_server(lines, **options) as server:
        assert is_serving(server.address)
    assert any("listening" in line for _, line in lines) == ("log_level" not in options)


def test_an_unknown_log_level_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="log_level: must be one of debug"):
        local_server(log_level="loud")


def test_a_stop_after_an_interrupted_wait_waits_for_both_to_end() -> None:
    code = (
        "import sys\n"
        "from nanoserve_client.supervisor import LocalServer\n"
        "command = sys.argv[1:]\n"
        "server = LocalServer(executor_command=command, scheduler_command=command).start()\n"
        "try:\n"
        "    print('up', flush=True)\n"
        "    server.wait()\n"
        "except KeyboardInterrupt:\n"
        "    server.stop()\n"
        "    print([service.child.exit_status for service in server._services], server.wait(0))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, *STAND_IN], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "[0, 0] True\n"


def test_none_runs_after_a_start_that_terminate_came_before() -> None:
    server = local_server()
    server.terminate()
    server.start()
    assert server.wait(0)
    assert not alive(server.executor_pid)
    assert not alive(server.scheduler_pid)


def test_a_start_that_takes_too_long_is_given_up() -> None:
    server = local_server(executor_flags=["--silent"], start_timeout=0.5)
    with pytest.raises(ServerStartError, match=r"the executor does not serve after 0\.5 s") as caught:
        server.start()
    assert caught.value.exit_status is None
    assert not alive(server.executor_pid)
    assert not alive(server.scheduler_pid)


def test_what_a_service_started_goes_with_it(tmp_path: Path) -> None:
    litter = tmp_path / "pid"
    with local_server(executor_flags=[f"--litter={litter}"]) as server:
        left_behind = int(litter.read_text())
        assert alive(left_behind)
        os.kill(server.executor_pid, signal.SIGKILL)
        assert eventually(lambda: not alive(left_behind))


def test_a_service_that_keeps_ending_is_restarted_ever_more_slowly() -> None:
    lines: Lines = []
    with local_server(lines, executor_flags=["--die"]):
        told = [0]

        def restarts() -> bool:
            told[0] = sum("starting it again in" in line for _, line in lines)
            return told[0] >= 2

        assert eventually(restarts)
    pauses = [line.rsplit(" in ", 1)[1] for service, line in lines if "starting it again" in line]
    assert pauses[:2] == ["0.5 s", "1 s"]


def test_the_pause_before_a_restart_doubles_up_to_a_limit() -> None:
    assert [backoff_seconds(n) for n in range(5)] == [0, 0.5, 1, 2, 4]
    assert backoff_seconds(10_000) == 30


def test_a_long_temporary_folder_does_not_make_a_socket_path_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with private_folder() as folder:
        assert len(folder) < 80
        assert Path(folder).stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_no_process_survives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from nanoserve_client.supervisor import LocalServer\n"
        "command = sys.argv[1:]\n"
        "server = LocalServer(executor_command=command, scheduler_command=command).start()\n"
        "print(server.executor_pid, server.scheduler_pid, flush=True)\n"
        "server.wait()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *STAND_IN],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},  # its folder stays behind
    )
    with process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(alive, pids))
        process.kill()
    assert eventually(lambda: not any(map(alive, pids)))
