"""Both services as processes with everything that keeps strangers out, and what their logs say of it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from certificates import Authorities
from processes import Process, running

import nanoserve_client as ns

SECRET = "shared-secret-of-this-test"
NANOSERVE = (sys.executable, "-m", "nanoserve_client")


def new_key(path: Path, *flags: str) -> str:
    """Makes a key by the command, adds its entry to the file and returns it."""
    command = [*NANOSERVE, "api-key", "new", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    with path.open("a") as file:
        file.write(done.stdout)
    return done.stderr.split()[-1]


def command(key: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"NANOSERVE_API_KEY": key}
    return subprocess.run(
        [*NANOSERVE, *words], capture_output=True, text=True, env=environment, timeout=60, check=False
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_secured_server_serves_who_it_should_and_logs_nothing_secret(
    workers: int, tmp_path: Path, authorities: Authorities
) -> None:
    ours, other = authorities.ours, authorities.other
    keys, secret = tmp_path / "keys.toml", tmp_path / "secret"
    secret.write_text(SECRET)
    key, admin = new_key(keys, "--tenant=team-a"), new_key(keys, "--tenant=ops", "--admin")
    served = (f"--tls-cert={ours.good.cert}", f"--tls-key={ours.good.key}", "--log-level=debug")
    listen = ("--listen=0.0.0.0:0", f"--secret-file={secret}")  # with TLS and a secret that is allowed
    with running("executor_svc", "--virtual", *served, *listen) as executor:
        port = executor.event("listening")["address"].rpartition(":")[2]
        link = (
            f"--executor=127.0.0.1:{port}",
            f"--executor-tls-ca={ours.ca}",
            f"--executor-secret-file={secret}",
        )
        flags = (
            *served,
            *link,
            "--listen=0.0.0.0:0",
            f"--tls-client-ca={other.ca}",
            f"--api-workers={workers}",
        )
        with running("scheduler_svc", *flags, f"--api-key-file={keys}") as scheduler:
            address = "localhost:" + scheduler.event("listening")["address"].rpartition(":")[2]
            tls = {"tls_ca": ours.ca, "tls_cert": other.good.cert, "tls_key": other.good.key}
            words = [f"--server={address}", *(f"--{n.replace('_', '-')}={path}" for n, path in tls.items())]
            done = command(key, "generate", "hello", "--max-tokens=4", *words)
            assert done.returncode == 0, done.stderr
            assert command(admin, "load", *words).returncode == 0
            denied = command(key, "load", *words)
            assert (denied.returncode, key in denied.stderr) == (1, False)
            wrong = "nsk-a-wrong-key"
            refused = command(wrong, "generate", "hello", *words)
            assert refused.returncode == 1
            assert "UNAUTHENTICATED" in refused.stderr
            with pytest.raises(ns.Unavailable), ns.Client(address, api_key=key, tls_ca=ours.ca) as client:
                client.generate("no certificate", timeout=10)
            exchange_keys(scheduler, keys, address, tls, former=key)
            assert scheduler.end(signal.SIGTERM) == 0
            assert executor.end(signal.SIGTERM) == 0
            log = "\n".join([*scheduler.lines, *executor.lines])
            assert "api keys reloaded" in log
            assert "Traceback" not in log
            assert '"insecure"' not in log.replace('"insecure": false', "")
            for text in (SECRET, key, admin, wrong, "PRIVATE KEY"):
                assert text not in log


def exchange_keys(scheduler: Process, keys: Path, address: str, tls: dict[str, str], former: str) -> None:
    """SIGHUP: a garbled file changes nothing, a good one everything."""

    def code(key: str) -> str:
        try:
            with ns.Client(address, api_key=key, **tls) as client:  # type: ignore[arg-type]
                client.model_info(timeout=20)
        except ns.ApiError as error:
            return error.code.name
        return "OK"

    keys.write_text("garbled [")
    scheduler.process.send_signal(signal.SIGHUP)
    assert "TOML" in scheduler.event("api keys not reloaded")["reason"]
    assert code(former) == "OK"
    keys.write_text("")
    later = new_key(keys, "--tenant=team-b")
    scheduler.process.send_signal(signal.SIGHUP)
    scheduler.event("api keys reloaded")
    time.sleep(0.5)  # workers are told a moment later
    assert [code(key) for key in (former, later) for _ in range(3)] == ["UNAUTHENTICATED"] * 3 + ["OK"] * 3


def test_insecure_is_allowed_by_name_and_warned_of(tmp_path: Path) -> None:
    executor_flags = ("--virtual", "--listen=0.0.0.0:0", "--insecure")
    with running("executor_svc", *executor_flags) as executor:
        assert "--secret-file" in executor.event("insecure")["reason"]
        port = executor.event("listening")["address"].rpartition(":")[2]
        flags = ("--listen=0.0.0.0:0", f"--executor=127.0.0.1:{port}", "--insecure")
        with running("scheduler_svc", *flags) as scheduler:
            assert "--api-key-file" in scheduler.event("insecure")["reason"]
            scheduler.event("listening")


def test_serve_takes_keys_and_certificates(tmp_path: Path, authorities: Authorities) -> None:
    keys = tmp_path / "keys.toml"
    key, good = new_key(keys, "--tenant=team-a"), authorities.ours.good
    flags = (f"--tls-cert={good.cert}", f"--tls-key={good.key}", f"--api-key-file={keys}", "--virtual")
    with subprocess.Popen(
        [*NANOSERVE, "serve", "--listen=127.0.0.1:0", *flags],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as server:
        assert server.stdout is not None
        line = server.stdout.readline().decode()
        address = "localhost:" + line.split(";")[0].rpartition(":")[2]
        words = [f"--server={address}", f"--tls-ca={authorities.ours.ca}"]
        assert command(key, "generate", "hello", "--max-tokens=4", *words).returncode == 0
        assert command("nsk-wrong", "generate", "hello", *words).returncode == 1
        later = new_key(keys, "--tenant=team-b")
        server.send_signal(signal.SIGHUP)
        time.sleep(1)  # only the log, which is not read here, says when it is done
        assert command(later, "generate", "hello", "--max-tokens=4", *words).returncode == 0
        server.terminate()
        assert server.wait(60) == 0


@pytest.mark.parametrize(
    ("module", "flag"),
    [
        ("scheduler_svc", "--api-key-file"),
        ("scheduler_svc", "--executor-secret-file"),
        ("executor_svc", "--secret-file"),
    ],
)
def test_a_file_that_is_missing_or_garbled_ends_the_start_with_one_line(
    module: str, flag: str, tmp_path: Path
) -> None:
    (tmp_path / "garbled").write_text("not = [ what it should be")
    more = ["--virtual"] if module == "executor_svc" else ["--executor=unix:/nonexistent"]
    for name in ("missing", "garbled"):
        done = subprocess.run(
            [sys.executable, "-m", module, "--listen=127.0.0.1:0", *more, f"{flag}={tmp_path / name}"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert f"error: {flag}" in line
        assert "should be" not in line
