"""Attention over the paged KV cache: one interface, and the code behind it."""

from executor_svc.attention.base import AttentionBackend, AttentionContext
from executor_svc.attention.reference import ReferenceAttention
from executor_svc.attention.sdpa import SdpaAttention

__all__ = ["AttentionBackend", "AttentionContext", "ReferenceAttention", "SdpaAttention"]
