"""TLS of servers and channels, from PEM files that flags name. What is wrong with a file is told with its flag."""

import ssl
from dataclasses import dataclass

import grpc


@dataclass(frozen=True, slots=True)
class ServerTls:
    """Files of a server: its certificate (with what stands between it and a root) and key, and whom it lets in."""

    cert: str | None = None
    key: str | None = None
    client_ca: str | None = None
    """Clients must show a certificate that one of these has signed; None: nobody has to show any."""

    def check(self) -> None:
        """ValueError, naming the flag, where one is given without the other that it needs."""
        _require_pair("--tls-cert", self.cert, "--tls-key", self.key)
        if self.client_ca is not None and self.cert is None:
            raise ValueError("--tls-client-ca: needs --tls-cert and --tls-key")

    def credentials(self) -> grpc.ServerCredentials | None:
        """What a server listens with, None without TLS; ValueError, naming the flag, where a file is no good."""
        if self.cert is None or self.key is None:
            return None
        chain = _read_pair("--tls-cert", self.cert, "--tls-key", self.key)
        roots = None if self.client_ca is None else _read_roots("--tls-client-ca", self.client_ca)
        return grpc.ssl_server_credentials([chain], roots, require_client_auth=roots is not None)


@dataclass(frozen=True, slots=True)
class ChannelTls:
    """Files of a client: whom it trusts, and the certificate that it shows where a server asks for one."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    prefix: str = "--tls-"
    """How the names of its flags, or parameters, begin."""

    @property
    def is_on(self) -> bool:
        """Whether there is to be TLS at all."""
        return self.ca is not None

    def check(self) -> None:
        """ValueError, naming the flag, where one is given without the other that it needs."""
        _require_pair(self.prefix + "cert", self.cert, self.prefix + "key", self.key)
        if self.cert is not None and self.ca is None:
            raise ValueError(f"{self.prefix}cert: needs {self.prefix}ca")

    def credentials(self) -> grpc.ChannelCredentials | None:
        """What a channel is made with, None without TLS; ValueError, naming the flag, where a file is no good."""
        if self.ca is None:
            return None
        roots = _read_roots(self.prefix + "ca", self.ca)
        if self.cert is None or self.key is None:
            return grpc.ssl_channel_credentials(roots)
        key, cert = _read_pair(self.prefix + "cert", self.cert, self.prefix + "key", self.key)
        return grpc.ssl_channel_credentials(roots, key, cert)


def read_file(flag: str, path: str) -> bytes:
    """The content of a file; ValueError, naming `flag`, where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"{flag}: cannot read {path!r}: {error.strerror}") from error


def _require_pair(first_flag: str, first: str | None, second_flag: str, second: str | None) -> None:
    if first is not None and second is None:
        raise ValueError(f"{first_flag}: needs {second_flag}")
    if second is not None and first is None:
        raise ValueError(f"{second_flag}: needs {first_flag}")


def _read_roots(flag: str, path: str) -> bytes:
    roots = read_file(flag, path)
    try:
        # gRPC itself would say nothing until the first connection.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except OSError as error:
        raise ValueError(f"{flag}: {path!r} holds no certificate in PEM") from error
    return roots


def _read_pair(cert_flag: str, cert: str, key_flag: str, key: str) -> tuple[bytes, bytes]:
    """Key and certificate, which belong together."""
    contents = read_file(key_flag, key), read_file(cert_flag, cert)
    try:
        # A key that has a password is refused: there is nobody to ask.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: b"")
    except OSError as error:
        rule = "are not, in PEM, a certificate and its key without a password"
        raise ValueError(f"{cert_flag} and {key_flag}: {cert!r} and {key!r} {rule}") from error
    return contents
