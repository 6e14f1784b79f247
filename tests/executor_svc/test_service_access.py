"""Who may use an executor: the shared secret and certificates, over real sockets."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from certificates import Authorities
from executor_plans import TINY
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from session_client import IDENTITY, TIMEOUT_SECONDS

from executor_svc.service import ExecutorServer
from executor_svc.virtual import InstantClock, VirtualRunner
from nanoserve.bearer import bearer_metadata
from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from nanoserve.tls import ChannelTls, ServerTls

SECRET = "a-shared-secret"


@contextmanager
def serving(
    tls: ServerTls | None = None, secret: str | None = None, listen: str = "127.0.0.1:0"
) -> Iterator[str]:
    server = ExecutorServer(listen, tls, secret)
    server.start(VirtualRunner(TINY, clock=InstantClock(), checked=True), IDENTITY)
    try:
        yield server.address
    finally:
        server.stop(0)


def describe(address: str, tls: ChannelTls | None = None, token: str | None = None) -> grpc.StatusCode:
    """What Describe ends with."""
    credentials = None if tls is None else tls.credentials()
    channel = (
        grpc.insecure_channel(address) if credentials is None else grpc.secure_channel(address, credentials)
    )
    with channel:
        try:
            ExecutorServiceStub(channel).Describe(
                pb.DescribeRequest(), timeout=TIMEOUT_SECONDS, metadata=bearer_metadata(token)
            )
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


def test_only_who_shows_the_secret_is_let_in(tmp_path: Path) -> None:
    for listen in ("127.0.0.1:0", f"unix:{tmp_path}/executor"):
        with serving(secret=SECRET, listen=listen) as address:
            assert describe(address, token=SECRET) is grpc.StatusCode.OK
            for token in (None, "x", SECRET + "x", SECRET[:-1], SECRET.upper()):
                assert describe(address, token=token) is grpc.StatusCode.UNAUTHENTICATED


def test_every_method_but_health_wants_the_secret() -> None:
    with serving(secret=SECRET) as address, grpc.insecure_channel(address) as channel:
        stub = ExecutorServiceStub(channel)
        # The stream's end comes without a message of it.
        calls = [
            lambda: list(stub.Execute(iter([]), timeout=TIMEOUT_SECONDS)),
            lambda: stub.StartProfile(pb.StartProfileRequest(), timeout=TIMEOUT_SECONDS),
            lambda: stub.StopProfile(pb.StopProfileRequest(), timeout=TIMEOUT_SECONDS),
            lambda: list(
                reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                    iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=TIMEOUT_SECONDS
                )
            ),
        ]
        for call in calls:
            with pytest.raises(grpc.RpcError) as refusal:
                call()
            assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert refusal.value.details() == ""
        health = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_streams_that_are_refused_take_no_session_and_no_thread() -> None:
    with serving(secret=SECRET) as address, grpc.insecure_channel(address) as channel:
        # More than an executor has threads, none of which ever sends anything.
        calls = [
            channel.stream_stream("/nanoserve.executor.v1.ExecutorService/Execute")(endless())
            for _ in range(64)
        ]
        assert {call.code() for call in calls} == {grpc.StatusCode.UNAUTHENTICATED}
        assert describe(address, token=SECRET) is grpc.StatusCode.OK


def test_strangers_who_ask_health_and_say_nothing_keep_no_scheduler_waiting() -> None:
    with serving(secret=SECRET) as address, grpc.insecure_channel(address) as channel:
        over = threading.Event()

        def silence() -> Iterator[bytes]:
            over.wait(TIMEOUT_SECONDS)
            yield from ()

        calls = [channel.stream_stream("/grpc.health.v1.Health/Check")(silence()) for _ in range(64)]
        try:
            for call in calls[-1:]:
                assert not call.done()
            assert describe(address, token=SECRET) is grpc.StatusCode.OK
        finally:
            over.set()
            for call in calls:
                call.cancel()


def endless() -> Iterator[bytes]:
    """Requests of a caller that says nothing; gRPC leaves it when the call is over."""
    yield from ()


def test_certificates_are_asked_for_and_expired_ones_are_none(authorities: Authorities) -> None:
    ours, other = authorities.ours, authorities.other
    with serving(ServerTls(ours.good.cert, ours.good.key, other.ca)) as address:
        good = ChannelTls(ours.ca, other.good.cert, other.good.key)
        assert describe(address, good) is grpc.StatusCode.OK
        for wrong in (
            ChannelTls(ours.ca, other.expired.cert, other.expired.key),
            ChannelTls(ours.ca, ours.good.cert, ours.good.key),
            ChannelTls(ours.ca),
            ChannelTls(other.ca, other.good.cert, other.good.key),
            None,
        ):
            assert describe(address, wrong) is grpc.StatusCode.UNAVAILABLE


def test_a_secret_is_asked_for_behind_tls_too(authorities: Authorities) -> None:
    ours = authorities.ours
    with serving(ServerTls(ours.good.cert, ours.good.key), SECRET) as address:
        assert describe(address, ChannelTls(ours.ca), SECRET) is grpc.StatusCode.OK
        assert describe(address, ChannelTls(ours.ca)) is grpc.StatusCode.UNAUTHENTICATED


def test_files_that_are_no_good_are_told_before_anything_is_bound(
    authorities: Authorities, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="--tls-cert and --tls-key"):
        ExecutorServer(
            f"unix:{tmp_path}/executor", ServerTls(authorities.ours.good.cert, authorities.other.good.key)
        )
    assert not (tmp_path / "executor").exists()
