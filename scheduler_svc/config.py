"""What the command line says: one frozen SchedulerConfig, every value checked with its flag named."""

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from nanoserve.address import check_address
from nanoserve.flags import OneLineParser
from scheduler_svc.scheduling_flags import SchedulingFlags, add_flag, add_scheduling_flags, require
from scheduler_svc.security_flags import add_security_flags, check_security

DEFAULT_LISTEN = "127.0.0.1:50051"
DEFAULT_EXECUTOR = "127.0.0.1:50061"
_LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class SchedulerConfig(SchedulingFlags):
    """What a scheduler is started with. ValueError, naming the flag, where a value is out of range."""

    model: str | None = None
    """Directory or hub id; None is the demo checkpoint."""
    listen: str = DEFAULT_LISTEN
    executor: str = DEFAULT_EXECUTOR
    served_model_name: str | None = None
    """What `model` fields of requests call it; None: the last part of `model`."""
    max_queue_size: int = 4096
    """Most requests that wait for their first step."""
    max_queue_tokens: int | None = None
    """Most prompt tokens of requests that wait for their first step; None: no limit."""
    executor_loss_timeout: float = 120.0
    """Seconds without an executor after which all requests end."""
    executor_loss_grace: float = 5.0
    """Seconds without an executor after which no more are accepted."""
    drain_timeout: float = 30.0
    """Seconds that SIGTERM leaves running requests."""
    take_over: bool = False
    record: str | None = None
    """Where to write every session, plan and result; None: nowhere."""
    metrics_listen: str | None = None
    """Where Prometheus may read metrics over HTTP, host:port; None: nowhere."""
    otlp_traces_endpoint: str | None = None
    """The collector that gets spans of requests, "http://host:port" or "https://host:port"; None: none are made."""
    api_workers: int = 0
    """Processes that serve the API; 0: the scheduler's own process does."""
    log_level: str = "info"
    api_key_file: str | None = None
    """None: nobody has to show a key."""
    tls_cert: str | None = None
    """This and the other files of TLS: paths of PEM files; None: there is no TLS, or nobody is asked who he is."""
    tls_key: str | None = None
    tls_client_ca: str | None = None
    executor_tls_ca: str | None = None
    executor_tls_cert: str | None = None
    executor_tls_key: str | None = None
    executor_secret_file: str | None = None
    insecure: bool = False
    """Whether other machines may reach what has no TLS or asks for no key."""

    def __post_init__(self) -> None:
        SchedulingFlags.__post_init__(self)
        check_address("--listen", self.listen)
        check_address("--executor", self.executor)
        if self.metrics_listen is not None:
            check_address("--metrics-listen", self.metrics_listen)
            if self.metrics_listen.startswith("unix:"):
                raise ValueError("--metrics-listen: must be host:port")
        endpoint = self.otlp_traces_endpoint
        is_url = endpoint is None or re.fullmatch(r"https?://[^/\s]+:\d+/?", endpoint) is not None
        require("otlp_traces_endpoint", is_url, "must be http://host:port or https://host:port", self)
        require("model", self.model is None or self.model != "", "must not be empty", self)
        named = self.served_model_name is None or self.served_model_name != ""
        require("served_model_name", named, "must not be empty", self)
        require("record", self.record is None or self.record != "", "must not be empty", self)
        levels = ", ".join(_LOG_LEVELS)
        require("log_level", self.log_level in _LOG_LEVELS, f"must be one of {levels}", self)
        queue_tokens = self.max_queue_tokens
        require("max_queue_tokens", queue_tokens is None or queue_tokens >= 1, "must be at least 1", self)
        require("max_queue_size", self.max_queue_size >= 1, "must be at least 1", self)
        for name in ("executor_loss_timeout", "executor_loss_grace", "drain_timeout"):
            seconds = getattr(self, name)
            require(name, math.isfinite(seconds) and seconds >= 0, "must be finite and at least 0", self)
        require("api_workers", 0 <= self.api_workers <= 256, "must be in [0, 256]", self)
        if self.api_workers and self.listen.startswith("unix:"):
            raise ValueError("--api-workers: workers cannot share a unix socket, --listen must be host:port")
        check_security(self)


def build_parser() -> argparse.ArgumentParser:
    """The command line of `nanoserve-scheduler`."""
    parser = OneLineParser(
        prog="nanoserve-scheduler",
        description="Takes requests, decides each step of an executor, and streams the text.",
        allow_abbrev=False,
    )
    _add(parser, "model", "model directory or hub id (default: the demo checkpoint)", metavar="DIR|HUB_ID")
    _add(parser, "served_model_name", "what requests call the model (default: its directory's name)")
    listen = "host:port or unix:PATH; port 0 picks one, see the log line 'listening'"
    _add(parser, "listen", listen, metavar="ADDR")
    _add(parser, "api_workers", "processes that serve the API; 0: the scheduler's own does", type=int)
    _add(parser, "executor", "where the executor listens", metavar="ADDR")
    _add(parser, "executor_loss_timeout", "seconds to wait for an executor that is away", type=float)
    _add(
        parser,
        "executor_loss_grace",
        "seconds without an executor in which requests are still accepted",
        type=float,
    )
    _add(parser, "take_over", "end another scheduler's session with the executor")
    _add(parser, "drain_timeout", "seconds that SIGTERM leaves running requests", type=float)
    _add(parser, "record", "write every session, plan and result to this file", metavar="F")
    metrics = "serve metrics to Prometheus over HTTP at host:port (default: nowhere)"
    _add(parser, "metrics_listen", metrics, metavar="ADDR")
    traces = "send spans of requests to this OpenTelemetry collector, http(s)://host:port (default: nowhere)"
    _add(parser, "otlp_traces_endpoint", traces, metavar="URL")
    levels = f"{{{','.join(_LOG_LEVELS)}}}"
    _add(parser, "log_level", "least severe log lines to write", metavar=levels)
    add_security_flags(partial(_add, parser.add_argument_group("security", "docs/security.md says more")))
    group = parser.add_argument_group("scheduling")
    add_scheduling_flags(group)
    _add(group, "max_queue_size", "most requests that wait", type=int)
    _add(group, "max_queue_tokens", "most prompt tokens that wait (default: no limit)", type=int)
    return parser


def _add(group: Any, name: str, text: str, **options: Any) -> None:
    add_flag(group, SchedulerConfig, name, text, **options)


def parse_config(argv: Sequence[str] | None = None) -> SchedulerConfig:
    """Reads a command line (None: this process's). A wrong one ends the process with one line and status 2."""
    parser = build_parser()
    arguments = vars(parser.parse_args(argv))
    try:
        return SchedulerConfig(**arguments)
    except ValueError as error:
        parser.error(str(error))
