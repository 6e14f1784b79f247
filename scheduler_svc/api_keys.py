"""The file of API keys: read, checked, and looked up. Nothing said about it ever quotes it.

The file is TOML, a table `[[keys]]` a key; docs/security.md describes it. It holds SHA-256 hashes: keys are long and
random, so that a hash cannot be turned back by guessing.
"""

import hashlib
import hmac
import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanoserve.tls import read_file
from scheduler_svc.messages import ApiKey, TenantLimits

_FIELDS = ("sha256", "tenant", "max_concurrency", "tokens_per_second", "share_prefix_cache", "admin")
_HASH = re.compile("[0-9a-f]{64}")
_TENANT = re.compile("[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class KeyFile:
    """What a file of API keys says: the keys, and the limits of all their tenants."""

    keys: tuple[ApiKey, ...]
    limits: tuple[TenantLimits, ...]


def read_api_keys(path: str) -> KeyFile:
    """The keys of a file; ValueError, naming --api-key-file, where it is not one."""
    content = read_file("--api-key-file", path)
    try:
        return _parse(content)
    except ValueError as error:
        raise ValueError(f"--api-key-file: {path!r}: {error}") from error


def find_key(keys: Sequence[ApiKey], token: str) -> ApiKey | None:
    """The key that `token` is, if it is one. A wrong one takes as long, whatever it has in common with a right one."""
    digest = hashlib.sha256(token.encode(errors="replace")).digest()
    found = None
    for key in keys:
        if hmac.compare_digest(key.sha256, digest):
            found = key
    return found


def _parse(content: bytes) -> KeyFile:
    try:
        document = tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError):  # which may quote it
        raise ValueError("is not TOML") from None
    entries = document.get("keys")
    if set(document) != {"keys"} or not isinstance(entries, list) or not entries:
        raise ValueError("must have one or more tables [[keys]], and nothing else")
    parsed = [_key(f"keys[{index}]", entry) for index, entry in enumerate(entries)]
    _check_agreement(parsed)
    limits = {limit.tenant: limit for _, limit in parsed}
    return KeyFile(tuple(key for key, _ in parsed), tuple(limits.values()))


def _key(path: str, entry: Any) -> tuple[ApiKey, TenantLimits]:
    if not isinstance(entry, dict) or not set(entry) <= set(_FIELDS):
        raise ValueError(f"{path}: may have {', '.join(_FIELDS)}, and nothing else")
    sha256, tenant = entry.get("sha256"), entry.get("tenant")
    if not isinstance(sha256, str) or not _HASH.fullmatch(sha256):
        raise ValueError(f"{path}.sha256: must be 64 hexadecimal digits in lower case, the hash of a key")
    if not isinstance(tenant, str) or not _TENANT.fullmatch(tenant):
        raise ValueError(f"{path}.tenant: must be 1 to 64 letters, digits, dots, dashes and underscores")
    concurrency, rate = entry.get("max_concurrency"), entry.get("tokens_per_second")
    if concurrency is not None and (type(concurrency) is not int or concurrency < 1):
        raise ValueError(f"{path}.max_concurrency: must be a whole number, at least 1")
    if rate is not None and (type(rate) not in (int, float) or not math.isfinite(rate) or rate <= 0):
        raise ValueError(f"{path}.tokens_per_second: must be a finite number, more than 0")
    for name in ("share_prefix_cache", "admin"):
        if not isinstance(entry.get(name, False), bool):
            raise ValueError(f"{path}.{name}: must be true or false")
    shares, is_admin = entry.get("share_prefix_cache", False), entry.get("admin", False)
    limits = TenantLimits(tenant, concurrency, None if rate is None else float(rate))
    return ApiKey(bytes.fromhex(sha256), tenant, shares, is_admin), limits


def _check_agreement(entries: Sequence[tuple[ApiKey, TenantLimits]]) -> None:
    """Limits are a tenant's, whichever of its keys it shows; and a key is one tenant's."""
    tenants: dict[str, int] = {}
    hashes: dict[bytes, int] = {}
    for index, (key, limits) in enumerate(entries):
        same = hashes.setdefault(key.sha256, index)
        if same != index:
            raise ValueError(f"keys[{index}].sha256: is that of keys[{same}] too")
        first = tenants.setdefault(key.tenant, index)
        first_key, first_limits = entries[first]
        if limits != first_limits or key.shares_prefix_cache != first_key.shares_prefix_cache:
            what = "has other limits, or another share_prefix_cache, than"
            raise ValueError(f"keys[{index}]: {what} keys[{first}] of the same tenant")
