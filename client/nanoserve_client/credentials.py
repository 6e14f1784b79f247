"""How a client shows who it is, and makes sure of whom it talks to."""

import grpc
import grpc.aio

from nanoserve.bearer import Metadata, bearer_metadata, check_token
from nanoserve.channels import make_aio_channel, make_channel
from nanoserve.exposure import is_local
from nanoserve.tls import ChannelTls
from nanoserve_client.connection import channel_options
from nanoserve_client.errors import InvalidRequest

# By which a gateway before several servers sends what begins alike to the same one; see docs/deployment.md.
PREFIX_KEY_HEADER = "x-nanoserve-prefix-key"


class Credentials:
    """What one client has; see Client. InvalidRequest, naming the parameter, where something is no good.

    A key is not sent to another machine without TLS, unless `insecure` says that this is meant; `prefix_key`, which is
    no secret, is.
    """

    def __init__(
        self,
        address: str,
        api_key: str | None,
        tls_ca: str | None,
        tls_cert: str | None,
        tls_key: str | None,
        insecure: bool,
        prefix_key: str | None = None,
    ) -> None:
        tls = ChannelTls(tls_ca, tls_cert, tls_key, prefix="tls_")
        try:
            tls.check()
            self._credentials = tls.credentials()
            if api_key is not None:
                check_token("api_key", api_key)
            if prefix_key is not None:
                check_token("prefix_key", prefix_key)
        except ValueError as error:
            raise InvalidRequest(str(error)) from error
        if api_key is not None and tls_ca is None and not is_local(address) and not insecure:
            reason = f"would go to {address} without TLS (tls_ca); insecure says that this is meant"
            raise InvalidRequest(f"api_key: {reason}")
        self._address = address
        routing = () if prefix_key is None else ((PREFIX_KEY_HEADER, prefix_key),)
        self.metadata: Metadata = (*bearer_metadata(api_key), *routing)
        """Of every call."""

    def channel(self) -> grpc.Channel:
        """A channel for threads."""
        return make_channel(self._address, self._credentials, channel_options())

    def aio_channel(self) -> grpc.aio.Channel:
        """A channel of the running loop."""
        return make_aio_channel(self._address, self._credentials, channel_options())
