"""Attention over the paged KV cache: one interface, and the code behind it, chosen by name."""

from executor_svc.attention.base import AttentionBackend, AttentionContext, PrefillSpan
from executor_svc.attention.reference import ReferenceAttention
from executor_svc.kv_cache import KVCache

__all__ = ["AttentionBackend", "AttentionContext", "PrefillSpan", "make_attention_backend"]


def make_attention_backend(name: str, kv_cache: KVCache) -> AttentionBackend:
    """The backend that `--attention-backend` names; "auto" takes the best for the device."""
    if name in ("auto", "reference"):
        return ReferenceAttention(kv_cache)
    raise ValueError(f"--attention-backend: {name!r} is not known")
