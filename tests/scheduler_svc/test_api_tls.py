"""TLS of the API: who is believed, and who believes, over real sockets."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from certificates import Authorities, Issued
from scheduler_harness import Service, run

import nanoserve_client as ns

WORKERS = pytest.mark.parametrize("api_workers", [0, 1])


def tls_service(folder: Path, cert: Issued, **config: Any) -> Service:
    config.setdefault("listen", "127.0.0.1:0")
    return Service(folder, tls_cert=cert.cert, tls_key=cert.key, **config)


async def ask(service: Service, **access: str | None) -> int:
    """How many tokens a generation brings, by both clients."""
    async with ns.AsyncClient(service.address, **access) as client:  # type: ignore[arg-type]
        completion = await client.generate([1, 2, 3], max_tokens=4, ignore_eos=True, timeout=10)

    def ask_blocking() -> ns.Completion:
        with ns.Client(service.address, **access) as client:  # type: ignore[arg-type]
            return client.generate([1, 2, 3], max_tokens=4, ignore_eos=True, timeout=10)

    blocking = await asyncio.to_thread(ask_blocking)
    assert blocking.usage.num_output_tokens == completion.usage.num_output_tokens
    return completion.usage.num_output_tokens


@WORKERS
def test_a_client_that_trusts_the_servers_authority_is_served(
    api_workers: int, tmp_path: Path, authorities: Authorities
):
    async def test() -> None:
        ours, other = authorities.ours, authorities.other
        async with tls_service(tmp_path, ours.good, api_workers=api_workers) as service:
            await service.serving()
            assert await ask(service, tls_ca=ours.ca) == 4
            for access in ({"tls_ca": other.ca}, {}):  # an impostor's, and no TLS at all
                with pytest.raises(ns.Unavailable):
                    await ask(service, **access)
            assert await ask(service, tls_ca=ours.ca) == 4

    run(test)


def test_tls_goes_over_a_unix_socket_too(tmp_path: Path, authorities: Authorities):
    async def test() -> None:
        listen = f"unix:{tmp_path}/api"
        async with tls_service(tmp_path, authorities.ours.good, listen=listen) as service:
            await service.serving()
            assert await ask(service, tls_ca=authorities.ours.ca) == 4

    run(test)


def test_an_expired_certificate_of_the_server_is_not_believed(tmp_path: Path, authorities: Authorities):
    async def test() -> None:
        async with tls_service(tmp_path, authorities.ours.expired) as service:
            await service.serving()
            with pytest.raises(ns.Unavailable):
                await ask(service, tls_ca=authorities.ours.ca)

    run(test)


@WORKERS
def test_with_a_client_ca_only_good_certificates_are_let_in(
    api_workers: int, tmp_path: Path, authorities: Authorities
):
    async def test() -> None:
        ours, other = authorities.ours, authorities.other
        config = {"tls_client_ca": other.ca, "api_workers": api_workers}
        async with tls_service(tmp_path, ours.good, **config) as service:
            await service.serving()
            good, expired, foreign = other.good, other.expired, ours.good
            assert await ask(service, tls_ca=ours.ca, tls_cert=good.cert, tls_key=good.key) == 4
            for shown in (expired, foreign):
                with pytest.raises(ns.Unavailable):
                    await ask(service, tls_ca=ours.ca, tls_cert=shown.cert, tls_key=shown.key)
            with pytest.raises(ns.Unavailable):
                await ask(service, tls_ca=ours.ca)
            assert await ask(service, tls_ca=ours.ca, tls_cert=good.cert, tls_key=good.key) == 4

    run(test)


@WORKERS
def test_files_that_are_no_good_are_told_at_the_start(
    api_workers: int, tmp_path: Path, authorities: Authorities
):
    async def test() -> None:
        mixed = Issued(authorities.ours.good.cert, authorities.other.good.key)
        service = tls_service(tmp_path, mixed, api_workers=api_workers)
        with pytest.raises(ValueError, match="--tls-cert and --tls-key"):
            async with service:
                pass
        await service.executor.stop()

    run(test)
