"""How the executor is reached: where, with which certificates, and with what secret."""

from dataclasses import dataclass

import grpc

from nanoserve.address import CHANNEL_OPTIONS
from nanoserve.bearer import Metadata, bearer_metadata, read_secret
from nanoserve.channels import ChannelOptions, make_aio_channel, make_channel
from nanoserve.tls import ChannelTls

_PREFIX = "--executor-tls-"
SECRET_FLAG = "--executor-secret-file"
EXECUTOR_FLAGS = (*(_PREFIX + name for name in ("ca", "cert", "key")), SECRET_FLAG)


@dataclass(frozen=True, slots=True)
class ExecutorAccess:
    """Makes channels to one executor; every call over them has to carry `metadata`."""

    address: str
    credentials: grpc.ChannelCredentials | None = None
    """None: without TLS."""
    metadata: Metadata = ()

    def channel(self, options: ChannelOptions = CHANNEL_OPTIONS) -> grpc.aio.Channel:
        """A channel for asyncio."""
        return make_aio_channel(self.address, self.credentials, options)

    def blocking_channel(self) -> grpc.Channel:
        """A channel for threads."""
        return make_channel(self.address, self.credentials, CHANNEL_OPTIONS)


def executor_tls(ca: str | None, cert: str | None, key: str | None) -> ChannelTls:
    """The TLS of the link; errors name its flags."""
    return ChannelTls(ca, cert, key, prefix=_PREFIX)


def executor_access(address: str, tls: ChannelTls, secret_file: str | None) -> ExecutorAccess:
    """Reads the files; ValueError, naming the flag, where one is no good."""
    tls.check()
    secret = None if secret_file is None else read_secret(SECRET_FLAG, secret_file)
    return ExecutorAccess(address, tls.credentials(), bearer_metadata(secret))
