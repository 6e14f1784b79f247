"""The flags that say who is let in, and how the executor lets this scheduler in."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from nanoserve.exposure import exposure, is_local, require_consent
from nanoserve.tls import ServerTls
from scheduler_svc.executor_access import SECRET_FLAG, executor_tls

if TYPE_CHECKING:
    from scheduler_svc.config import SchedulerConfig

_FILES = (
    ("api_key_file", "API keys, by their hashes; SIGHUP has it read again (default: nobody has to show one)"),
    ("tls_cert", "certificate of this server, in PEM (default: no TLS)"),
    ("tls_key", "its key"),
    ("tls_client_ca", "clients must show a certificate that one of these has signed"),
    ("executor_tls_ca", "the executor's certificate must be signed by one of these (default: no TLS)"),
    ("executor_tls_cert", "certificate to show to the executor"),
    ("executor_tls_key", "its key"),
    ("executor_secret_file", "what to show to the executor, the same as its --secret-file"),
)


def add_security_flags(add: Callable[..., None]) -> None:
    """Adds the flags by `add(name, text, **options)`."""
    for name, text in _FILES:
        add(name, text, metavar="F")
    add("insecure", "allow what has no TLS, or no keys, where other machines can reach it")


def check_security(config: "SchedulerConfig") -> None:
    """ValueError, naming the flag, where flags lack others, or something is open that nobody said should be."""
    for name, _ in _FILES:
        if getattr(config, name) == "":
            raise ValueError(f"--{name.replace('_', '-')}: must not be empty")
    server_tls(config).check()
    executor_tls(config.executor_tls_ca, config.executor_tls_cert, config.executor_tls_key).check()
    require_consent(_exposure(config), insecure=config.insecure)
    require_consent(_open_metrics(config), insecure=config.insecure, flag="--metrics-listen")
    require_consent(_bare_secret(config), insecure=config.insecure, flag=SECRET_FLAG)


def security_warnings(config: "SchedulerConfig") -> list[str]:
    """What --insecure has allowed."""
    reasons = (_exposure(config), _open_metrics(config), _bare_secret(config))
    return [reason for reason in reasons if reason is not None]


def server_tls(config: "SchedulerConfig") -> ServerTls:
    """The TLS of the API."""
    return ServerTls(config.tls_cert, config.tls_key, config.tls_client_ca)


def _exposure(config: "SchedulerConfig") -> str | None:
    has_auth = config.api_key_file is not None or config.tls_client_ca is not None
    return exposure(
        config.listen,
        tls_flags=None if config.tls_cert is not None else "--tls-cert, --tls-key",
        auth_flags=None if has_auth else "--api-key-file or --tls-client-ca",
    )


def _open_metrics(config: "SchedulerConfig") -> str | None:
    if config.metrics_listen is None or is_local(config.metrics_listen):
        return None
    return (
        f"{config.metrics_listen!r} can be reached from other machines, and metrics have neither TLS nor keys"
    )


def _bare_secret(config: "SchedulerConfig") -> str | None:
    if config.executor_secret_file is None or config.executor_tls_ca is not None or is_local(config.executor):
        return None
    return f"the secret would go to {config.executor!r} without TLS (--executor-tls-ca)"
