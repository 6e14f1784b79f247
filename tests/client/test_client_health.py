"""`nanoserve health`, against servers that are in each of the states it can find one in."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from certificates import Authorities
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from nanoserve.tls import ServerTls
from nanoserve_client.cli import main

_Status = health_pb2.HealthCheckResponse


class Servicer(health.HealthServicer):
    """Keeps the names of the metadata that it was asked with."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        self.names += [name for name, _ in context.invocation_metadata()]
        return super().Check(request, context)


@contextmanager
def server(
    status: "_Status.ServingStatus.ValueType",
    credentials: grpc.ServerCredentials | None = None,
    servicer: Servicer | None = None,
) -> Iterator[str]:
    """One that answers `status`; yields its address."""
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = servicer or Servicer()
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
    servicer = Servicer()
    with server(_Status.SERVING, credentials, servicer) as address:
        assert main(["health", "--server", address, "--tls-ca", ours.ca]) == 0
        assert main(["health", "--server", address, "--tls-ca", authorities.other.ca]) == 1
    assert "user-agent" in servicer.names
    assert "authorization" not in servicer.names


def test_health_offers_no_flag_about_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "--help"]) == 0
    told = capsys.readouterr().out
    assert "--tls-ca" in told
    assert "--insecure" not in told
    assert "NANOSERVE_API_KEY" not in told


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_a_timeout_must_be_a_time(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "--timeout", seconds]) == 2
    error = capsys.readouterr().err
    assert "--timeout" in error
    assert error.count("\n") == 1
    assert "_seconds" not in error
