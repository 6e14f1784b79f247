"""What the command line says: one frozen SchedulerConfig, every value checked with its flag named."""

import argparse
import ipaddress
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from nanoserve.address import check_address
from nanoserve.flags import OneLineParser
from scheduler_svc.core.policy import POLICIES

DEFAULT_LISTEN = "127.0.0.1:50051"
DEFAULT_EXECUTOR = "127.0.0.1:50061"
_LOG_LEVELS = ("debug", "info", "warning", "error")
_CHOICES = {
    "batching": tuple(POLICIES),
    "kv_allocation": ("paged", "contiguous"),
    "log_level": _LOG_LEVELS,
}


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """What a scheduler is started with. ValueError, naming the flag, where a value is out of range."""

    model: str | None = None
    """Directory or hub id; None is the demo checkpoint."""
    listen: str = DEFAULT_LISTEN
    executor: str = DEFAULT_EXECUTOR
    served_model_name: str | None = None
    """What `model` fields of requests call it; None: the last part of `model`."""
    batching: str = "continuous"
    max_num_batched_tokens: int | None = None
    """None: the executor's limit."""
    pipeline_depth: int = 2
    max_plan_ms: float = 3.0
    """Most device time of the plans in flight where they hold several decode steps each."""
    max_queue_size: int = 4096
    """Most requests that wait for their first step."""
    max_queue_tokens: int | None = None
    """Most prompt tokens of requests that wait for their first step; None: no limit."""
    priority_aging_seconds: float | None = None
    """Waiting this long is worth one class of priority; None: classes are strict."""
    kv_allocation: str = "paged"
    kv_cache: bool = True
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    executor_loss_timeout: float = 120.0
    """Seconds."""
    drain_timeout: float = 30.0
    """Seconds that SIGTERM leaves running requests."""
    take_over: bool = False
    record: str | None = None
    """Where to write every session, plan and result; None: nowhere."""
    insecure: bool = False
    api_workers: int = 0
    """Processes that serve the API; 0: the scheduler's own process does."""
    log_level: str = "info"

    def __post_init__(self) -> None:
        check_address("--listen", self.listen)
        check_address("--executor", self.executor)
        _require("model", self.model is None or self.model != "", "must not be empty", self)
        named = self.served_model_name is None or self.served_model_name != ""
        _require("served_model_name", named, "must not be empty", self)
        _require("record", self.record is None or self.record != "", "must not be empty", self)
        for name, choices in _CHOICES.items():
            _require(name, getattr(self, name) in choices, f"must be one of {', '.join(choices)}", self)
        if not self.kv_cache and self.batching != "naive":
            raise ValueError(f"--no-kv-cache: is for --batching naive, not {self.batching}")
        queue_tokens, aging = self.max_queue_tokens, self.priority_aging_seconds
        _require("max_queue_tokens", queue_tokens is None or queue_tokens >= 1, "must be at least 1", self)
        ages = aging is None or (math.isfinite(aging) and aging > 0)
        _require("priority_aging_seconds", ages, "must be finite and more than 0", self)
        tokens = self.max_num_batched_tokens
        _require("max_num_batched_tokens", tokens is None or tokens >= 1, "must be at least 1", self)
        for name in ("pipeline_depth", "max_queue_size"):
            _require(name, getattr(self, name) >= 1, "must be at least 1", self)
        for name in ("executor_loss_timeout", "drain_timeout", "max_plan_ms"):
            seconds = getattr(self, name)
            _require(name, math.isfinite(seconds) and seconds >= 0, "must be finite and at least 0", self)
        _require("api_workers", 0 <= self.api_workers <= 256, "must be in [0, 256]", self)
        if self.api_workers and self.listen.startswith("unix:"):
            raise ValueError("--api-workers: workers cannot share a unix socket, --listen must be host:port")
        if not self.insecure and not _is_local(self.listen):
            raise ValueError(
                f"--listen: {self.listen!r} can be reached from other machines and TLS is not served yet;"
                " --insecure says that this is meant"
            )


def _is_local(address: str) -> bool:
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def flag(name: str) -> str:
    """The flag that sets a field of SchedulerConfig."""
    prefix = "--no-" if name.startswith("enable_") or name == "kv_cache" else "--"
    return prefix + name.replace("_", "-")


def _require(name: str, holds: bool, rule: str, config: SchedulerConfig) -> None:
    if not holds:
        raise ValueError(f"{flag(name)}: {rule}, got {getattr(config, name)!r}")


def build_parser() -> argparse.ArgumentParser:
    """The command line of `nanoserve-scheduler`."""
    parser = OneLineParser(
        prog="nanoserve-scheduler",
        description="Takes requests, decides each step of an executor, and streams the text.",
        allow_abbrev=False,
    )
    _add(parser, "model", "model directory or hub id (default: the demo checkpoint)", metavar="DIR|HUB_ID")
    _add(parser, "served_model_name", "what requests call the model (default: its directory's name)")
    _add(parser, "listen", "host:port or unix:PATH; port 0 picks one, see the log line 'listening'")
    _add(parser, "api_workers", "processes that serve the API; 0: the scheduler's own does", type=int)
    _add(parser, "insecure", "listen without TLS where other machines can reach")
    _add(parser, "executor", "where the executor listens")
    _add(parser, "executor_loss_timeout", "seconds to wait for an executor that is away", type=float)
    _add(parser, "take_over", "end another scheduler's session with the executor")
    _add(parser, "drain_timeout", "seconds that SIGTERM leaves running requests", type=float)
    _add(parser, "record", "write every session, plan and result to this file", metavar="F")
    _add(parser, "log_level", "least severe log lines to write")
    group = parser.add_argument_group("scheduling")
    _add(group, "batching", "how sequences share steps; all but continuous are for study")
    _add(group, "max_num_batched_tokens", "most tokens a step computes (default: the executor's)", type=int)
    _add(group, "pipeline_depth", "most plans sent and not yet answered", type=int)
    _add(group, "max_plan_ms", "device time that several decode steps a plan may add up to", type=float)
    _add(group, "max_queue_size", "most requests that wait", type=int)
    _add(group, "max_queue_tokens", "most prompt tokens that wait (default: no limit)", type=int)
    _add(
        group,
        "priority_aging_seconds",
        "wait worth one class of priority (default: strict classes)",
        type=float,
    )
    _add(group, "kv_allocation", "contiguous: blocks for the longest sequence for each; for study")
    _add(group, "kv_cache", "with --batching naive: compute every token from the whole sequence; for study")
    _add(group, "enable_prefix_caching", "compute every prompt as a whole")
    _add(group, "enable_chunked_prefill", "compute each prompt in one step")
    return parser


def _add(group: Any, name: str, text: str, **options: Any) -> None:
    """Adds the flag of one field, with the field's own default."""
    default = next(entry.default for entry in fields(SchedulerConfig) if entry.name == name)
    if isinstance(default, bool):
        action = "store_false" if default else "store_true"
        group.add_argument(flag(name), dest=name, action=action, help=text)
        return
    suffix = "" if default is None else " (default: %(default)s)"
    metavar = {"listen": "ADDR", "executor": "ADDR"}.get(name, "N" if "type" in options else None)
    if name in _CHOICES:
        metavar = f"{{{','.join(_CHOICES[name])}}}"
    options.setdefault("metavar", metavar)
    group.add_argument(flag(name), dest=name, default=default, help=text + suffix, **options)


def parse_config(argv: Sequence[str] | None = None) -> SchedulerConfig:
    """Reads a command line (None: this process's). A wrong one ends the process with one line and status 2."""
    parser = build_parser()
    arguments = vars(parser.parse_args(argv))
    try:
        return SchedulerConfig(**arguments)
    except ValueError as error:
        parser.error(str(error))
