"""The flags that say what the core does: the same words for `nanoserve-scheduler` and for `nanoserve simulate`."""

import math
from dataclasses import dataclass, fields
from typing import Any

from scheduler_svc.core.config import CoreConfig
from scheduler_svc.core.policy import POLICIES

CHOICES = {"batching": tuple(POLICIES), "kv_allocation": ("paged", "contiguous")}
# What "as much as the executor allows" is, to a core that takes the smaller of both.
_NO_TOKEN_LIMIT = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulingFlags:
    """How to schedule. ValueError, naming the flag, where a value is out of range."""

    batching: str = "continuous"
    max_num_batched_tokens: int | None = None
    """None: the executor's limit."""
    pipeline_depth: int = 2
    max_plan_ms: float = 4.0
    """Most device time of the plans in flight where they hold several decode steps each."""
    priority_aging_seconds: float | None = None
    """Waiting this long is worth one class of priority; None: classes are strict."""
    kv_allocation: str = "paged"
    kv_cache: bool = True
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            require(name, getattr(self, name) in choices, f"must be one of {', '.join(choices)}", self)
        if not self.kv_cache and self.batching != "naive":
            raise ValueError(f"--no-kv-cache: is for --batching naive, not {self.batching}")
        tokens, aging = self.max_num_batched_tokens, self.priority_aging_seconds
        require("max_num_batched_tokens", tokens is None or tokens >= 1, "must be at least 1", self)
        ages = aging is None or (math.isfinite(aging) and aging > 0)
        require("priority_aging_seconds", ages, "must be finite and more than 0", self)
        require("pipeline_depth", self.pipeline_depth >= 1, "must be at least 1", self)
        bounded = math.isfinite(self.max_plan_ms) and self.max_plan_ms >= 0
        require("max_plan_ms", bounded, "must be finite and at least 0", self)

    def core(self, hash_seed: int) -> CoreConfig:
        """What the core is told; `hash_seed` seeds its prefix keys."""
        return CoreConfig(
            max_num_batched_tokens=self.max_num_batched_tokens or _NO_TOKEN_LIMIT,
            pipeline_depth=self.pipeline_depth,
            enable_prefix_caching=self.enable_prefix_caching,
            enable_chunked_prefill=self.enable_chunked_prefill,
            priority_aging_seconds=self.priority_aging_seconds,
            batching=self.batching,
            kv_allocation=self.kv_allocation,
            enable_kv_cache=self.kv_cache,
            hash_seed=hash_seed,
        )


def flag(name: str) -> str:
    """The flag that sets a field of a configuration."""
    prefix = "--no-" if name.startswith("enable_") or name == "kv_cache" else "--"
    return prefix + name.replace("_", "-")


def require(name: str, holds: bool, rule: str, config: Any) -> None:
    """ValueError, naming the field's flag and its value in `config`, unless the rule holds."""
    if not holds:
        raise ValueError(f"{flag(name)}: {rule}, got {getattr(config, name)!r}")


def add_flag(group: Any, config: type[Any], name: str, text: str, **options: Any) -> None:
    """Adds the flag of one field of a configuration class, with the field's own default."""
    default = next(entry.default for entry in fields(config) if entry.name == name)
    if isinstance(default, bool):
        action = "store_false" if default else "store_true"
        group.add_argument(flag(name), dest=name, action=action, default=default, help=text)
        return
    suffix = "" if default is None else " (default: %(default)s)"
    options.setdefault("metavar", "N" if "type" in options else None)
    group.add_argument(flag(name), dest=name, default=default, help=text + suffix, **options)


def add_scheduling_flags(group: Any) -> None:
    """Adds the flags of SchedulingFlags to a parser's group."""
    for name, text, kind in (
        ("batching", "how sequences share steps; all but continuous are for study", str),
        ("max_num_batched_tokens", "most tokens a step computes (default: the executor's)", int),
        ("pipeline_depth", "most plans sent and not yet answered", int),
        ("max_plan_ms", "device time that several decode steps a plan may add up to", float),
        ("priority_aging_seconds", "wait worth one class of priority (default: strict classes)", float),
        ("kv_allocation", "contiguous: blocks for the longest sequence for each; for study", str),
        ("kv_cache", "with --batching naive: compute every token from the whole sequence; for study", None),
        ("enable_prefix_caching", "compute every prompt as a whole", None),
        ("enable_chunked_prefill", "compute each prompt in one step", None),
    ):
        options: dict[str, Any] = {} if kind is None else {"type": kind}
        if name in CHOICES:
            options["metavar"] = f"{{{','.join(CHOICES[name])}}}"
        add_flag(group, SchedulingFlags, name, text, **options)
