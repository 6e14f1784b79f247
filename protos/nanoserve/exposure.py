"""Who can reach an address, and whether that is meant: beyond this machine a server has TLS and knows its callers."""

import ipaddress


def is_local(address: str) -> bool:
    """Whether only this machine can reach `address`: a unix socket or loopback."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def exposure(listen: str, *, tls_flags: str | None, auth_flags: str | None) -> str | None:
    """What a server at `listen` lacks, None where that is nothing.

    `tls_flags` and `auth_flags` say how to get what there is none of; None: there is.
    """
    if is_local(listen):
        return None
    lacks = []
    if tls_flags is not None:
        lacks.append(f"without TLS ({tls_flags})")
    if auth_flags is not None:
        lacks.append(f"without knowing its callers ({auth_flags})")
    if not lacks:
        return None
    return f"{listen!r} can be reached from other machines, {' and '.join(lacks)}"


def require_consent(reason: str | None, *, insecure: bool, flag: str = "--listen") -> None:
    """ValueError, naming the flag, where there is a reason not to and nobody has said --insecure."""
    if reason is not None and not insecure:
        raise ValueError(f"{flag}: {reason}; --insecure says that this is meant")
