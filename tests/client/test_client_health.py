"""`nanoserve health`, against servers that are in each of the states it can find one in."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from certificates import Authorities
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from nanoserve.tls import ServerTls
from nanoserve_client.cli import main

_Status = health_pb2.HealthCheckResponse


@contextmanager
def server(
    status: "_Status.ServingStatus.ValueType", credentials: grpc.ServerCredentials | None = None
) -> Iterator[str]:
    """One that answers `status`; yields its address."""
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    servicer.set("", status)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    address = "127.0.0.1:0"
    port = (
        server.add_insecure_port(address)
        if credentials is None
        else server.add_secure_port(address, credentials)
    )
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_only_a_server_that_serves_is_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    with server(_Status.SERVING) as address:
        assert main(["health", "--server", address]) == 0
    with server(_Status.NOT_SERVING) as address:
        assert main(["health", "--server", address]) == 1
    assert main(["health", "--server", address]) == 1
    assert capsys.readouterr().out == "SERVING\nNOT_SERVING\nno answer\n"


def test_a_server_that_answers_at_all_is_alive() -> None:
    with server(_Status.NOT_SERVING) as address:
        assert main(["health", "--alive", "--server", address]) == 0
    assert main(["health", "--alive", "--server", address]) == 1


def test_health_asks_by_tls_and_shows_no_key(
    authorities: Authorities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOSERVE_API_KEY", "nsk-secret")
    ours = authorities.ours
    credentials = ServerTls(ours.good.cert, ours.good.key, None).credentials()
    with server(_Status.SERVING, credentials) as address:
        assert main(["health", "--server", address, "--tls-ca", ours.ca]) == 0
        assert main(["health", "--server", address, "--tls-ca", authorities.other.ca]) == 1


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_a_timeout_must_be_a_time(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "--timeout", seconds]) == 2
    assert "--timeout" in capsys.readouterr().err
