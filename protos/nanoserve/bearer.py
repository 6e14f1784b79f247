"""Keys and shared secrets on the wire: `authorization: Bearer TOKEN` in a call's metadata."""

import hmac
from collections.abc import Iterable
from typing import Any

import grpc

from nanoserve.tls import read_file

_NAME, _SCHEME = "authorization", "Bearer "
# What probes ask, without a key: it says whether the server serves, and nothing else.
OPEN_METHODS = "/grpc.health.v1.Health/"

Metadata = tuple[tuple[str, str], ...]


def check_token(name: str, token: str) -> str:
    """`token`; ValueError, naming `name` and not the token, where it could not travel in a header."""
    if not token or not all("!" <= character <= "~" for character in token):
        raise ValueError(f"{name}: must be printable ASCII without spaces, and not empty")
    return token


def read_secret(flag: str, path: str) -> str:
    """The shared secret in a file, surrounding white space left out; ValueError, naming `flag`, where it is none."""
    content = read_file(flag, path).strip()
    try:
        return check_token(flag, content.decode("ascii"))
    except ValueError:  # of either: neither may quote the file
        raise ValueError(f"{flag}: {path!r} must hold one line of printable ASCII without spaces") from None


def bearer_metadata(token: str | None) -> Metadata:
    """The metadata of a call that shows `token`; empty for None."""
    return () if token is None else ((_NAME, _SCHEME + token),)


def bearer_token(metadata: Iterable[Any] | None) -> str | None:
    """The token that a call shows, None where it shows none, or two."""
    shown = [value for name, value in metadata or () if name == _NAME]
    if len(shown) != 1 or not isinstance(shown[0], str) or not shown[0].startswith(_SCHEME):
        return None
    return shown[0].removeprefix(_SCHEME)


class SecretInterceptor(grpc.ServerInterceptor):
    """Lets in who shows the shared secret, and everybody to health."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        # It reads nothing, so it ends calls of every kind at once.
        self._refusal: Any = grpc.stream_stream_rpc_method_handler(_refuse)

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """The handler of a call, or one that refuses it."""
        token = bearer_token(handler_call_details.invocation_metadata) or ""
        is_known = hmac.compare_digest(token.encode(), self._secret)
        if is_known or handler_call_details.method.startswith(OPEN_METHODS):
            return continuation(handler_call_details)
        return self._refusal


def _refuse(requests: Any, context: grpc.ServicerContext) -> Any:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "")
