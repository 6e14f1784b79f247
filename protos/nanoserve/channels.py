"""Channels of both kinds, with TLS and without."""

from collections.abc import Sequence

import grpc
import grpc.aio

ChannelOptions = Sequence[tuple[str, int]]


def make_channel(
    address: str, credentials: grpc.ChannelCredentials | None, options: ChannelOptions
) -> grpc.Channel:
    """A channel for threads; without `credentials` there is no TLS."""
    if credentials is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, credentials, options=[*options, *_peer_name(address)])


def make_aio_channel(
    address: str, credentials: grpc.ChannelCredentials | None, options: ChannelOptions
) -> grpc.aio.Channel:
    """A channel for the running loop; without `credentials` there is no TLS."""
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, credentials, options=[*options, *_peer_name(address)])


def _peer_name(address: str) -> list[tuple[str, str]]:
    """Of a server behind a socket's path, which no certificate has, it is asked to be this machine."""
    return [("grpc.ssl_target_name_override", "localhost")] if address.startswith("unix:") else []
