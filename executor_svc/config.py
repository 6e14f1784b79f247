"""What the command line says: one frozen ExecutorConfig, every value checked with its flag named."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from nanoserve.address import check_address
from nanoserve.exposure import exposure, require_consent
from nanoserve.flags import OneLineParser
from nanoserve.tls import ServerTls

DEFAULT_LISTEN = "127.0.0.1:50061"
_LOG_LEVELS = ("debug", "info", "warning", "error")
_AT_LEAST_ONE = (
    "tensor_parallel_size",
    "block_size",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_num_decode_steps",
    "max_plans_in_flight",
)
_NOT_NEGATIVE = ("virtual_step_ms", "virtual_token_us", "virtual_kv_token_ns")
_SECURITY_FILES = {
    "tls_cert": "certificate of this server, in PEM (default: no TLS)",
    "tls_key": "its key",
    "tls_client_ca": "schedulers must show a certificate that one of these has signed",
    "secret_file": "schedulers must show what it holds (default: nobody has to)",
}
_CHOICES = {
    "device": ("auto", "cpu", "cuda"),
    "dtype": ("auto", "float32", "bfloat16"),
    "all_reduce": ("auto", "nccl", "one-shot", "two-shot"),
    "attention_backend": ("auto", "triton", "sdpa", "reference"),
    "load_format": ("auto", "dummy"),
    "log_level": _LOG_LEVELS,
}


@dataclass(frozen=True, slots=True)
class ExecutorConfig:
    """What an executor is started with. ValueError, naming the flag, where a value is out of range.

    None stands for "from the model" (`model`: the demo checkpoint) or "as much as fits".
    """

    model: str | None = None
    listen: str = DEFAULT_LISTEN
    device: str = "auto"
    """"cpu", "cuda", or "auto": cuda where there is one."""
    dtype: str = "auto"
    """"float32", "bfloat16", or "auto": float32 on a CPU, else the checkpoint's own; float16 is not served."""
    tensor_parallel_size: int = 1
    all_reduce: str = "auto"
    """How ranks sum: "nccl", "one-shot" or "two-shot", or "auto": by the size of the message."""
    block_size: int = 16
    num_kv_blocks: int | None = None
    """Block 0, which is never given out, is counted."""
    gpu_memory_utilization: float = 0.9
    max_num_seqs: int = 256
    max_model_len: int | None = None
    max_num_batched_tokens: int = 8192
    max_num_decode_steps: int = 8
    max_plans_in_flight: int = 8
    attention_backend: str = "auto"
    enforce_eager: bool = False
    no_resident_decode: bool = False
    """Whether the layers of a decode step of one row, too, are launched one by one."""
    load_format: str = "auto"
    seed: int = 0
    verify: bool = False
    profile_dir: str | None = None
    """Where profiles are written; None: none are recorded."""
    log_level: str = "info"
    no_watchdog: bool = False
    """Whether there is no parent that ends this process where it hangs."""
    tls_cert: str | None = None
    """This and the other files: paths; None: there is no TLS, or nobody is asked who he is."""
    tls_key: str | None = None
    tls_client_ca: str | None = None
    secret_file: str | None = None
    insecure: bool = False
    """Whether other machines may reach what has no TLS or asks for no secret."""
    virtual: bool = False
    virtual_step_ms: float = 1.0
    virtual_token_us: float = 1.0
    virtual_kv_token_ns: float = 1.0
    virtual_vocab_size: int | None = None
    virtual_poison: bool = False

    def __post_init__(self) -> None:
        check_address("--listen", self.listen)
        for name, choices in _CHOICES.items():
            _require(name, getattr(self, name) in choices, f"must be one of {', '.join(choices)}", self)
        for name in _AT_LEAST_ONE:
            _require(name, getattr(self, name) >= 1, "must be at least 1", self)
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            _require(name, math.isfinite(value) and value >= 0, "must be finite and at least 0", self)
        for name in ("num_kv_blocks", "max_model_len", "virtual_vocab_size"):
            value = getattr(self, name)
            _require(name, value is None or value >= 2, "must be at least 2", self)
        for name in ("model", "profile_dir", *_SECURITY_FILES):
            _require(name, getattr(self, name) != "", "must not be empty", self)
        several = self.tensor_parallel_size > 1
        _require("tensor_parallel_size", not (several and self.virtual), "must be 1 with --virtual", self)
        utilization = self.gpu_memory_utilization
        _require("gpu_memory_utilization", 0 < utilization <= 1, "must be in (0, 1]", self)
        _require("seed", 0 <= self.seed < 2**64, "must be in [0, 2**64)", self)
        # A step must be able to decode every row.
        tokens_suffice = self.max_num_batched_tokens >= self.max_num_seqs
        _require("max_num_batched_tokens", tokens_suffice, "must be at least --max-num-seqs", self)
        self.tls.check()
        require_consent(self.exposure_reason, insecure=self.insecure)

    @property
    def tls(self) -> ServerTls:
        """The TLS of the server."""
        return ServerTls(self.tls_cert, self.tls_key, self.tls_client_ca)

    @property
    def exposure_reason(self) -> str | None:
        """What the server lacks where other machines can reach it, None where that is nothing."""
        has_auth = self.secret_file is not None or self.tls_client_ca is not None
        return exposure(
            self.listen,
            tls_flags=None if self.tls_cert is not None else "--tls-cert, --tls-key",
            auth_flags=None if has_auth else "--secret-file or --tls-client-ca",
        )


def to_flags(config: ExecutorConfig) -> list[str]:
    """A command line that means the same."""
    values = [(flag(entry.name), getattr(config, entry.name)) for entry in fields(config)]
    return [
        name if value is True else f"{name}={value}"
        for name, value in values
        if value is not None and value is not False
    ]


def flag(name: str) -> str:
    """The flag that sets a field of ExecutorConfig."""
    return "--" + name.replace("_", "-")


def _require(name: str, holds: bool, rule: str, config: ExecutorConfig) -> None:
    if not holds:
        raise ValueError(f"{flag(name)}: {rule}, got {getattr(config, name)!r}")


def build_parser() -> argparse.ArgumentParser:
    """The command line of `nanoserve-executor`."""
    parser = OneLineParser(
        prog="nanoserve-executor",
        description="Holds a model's tensors and runs the steps that one scheduler plans.",
        allow_abbrev=False,
    )
    _add_service_flags(parser)
    _add_security_flags(parser.add_argument_group("security", "docs/security.md says more"))
    _add_model_flags(parser.add_argument_group("model and device"))
    _add_size_flags(parser.add_argument_group("sizes"))
    _add_virtual_flags(parser.add_argument_group("virtual executor"))
    return parser


def parse_config(argv: Sequence[str] | None = None) -> ExecutorConfig:
    """Reads a command line (None: this process's). A wrong one ends the process with one line and status 2."""
    parser = build_parser()
    arguments = vars(parser.parse_args(argv))
    try:
        return ExecutorConfig(**arguments)
    except ValueError as error:
        parser.error(str(error))


def _add(group: Any, name: str, text: str, **options: Any) -> None:
    """Adds the flag of one field, with the field's own default."""
    default = next(entry.default for entry in fields(ExecutorConfig) if entry.name == name)
    suffix = "" if default is None or isinstance(default, bool) else " (default: %(default)s)"
    group.add_argument(flag(name), dest=name, default=default, help=text + suffix, **options)


def _add_service_flags(group: Any) -> None:
    _add(
        group,
        "listen",
        "host:port or unix:PATH; port 0 picks one, see the log line 'listening'",
        metavar="ADDR",
    )
    folder = "write profiles to this folder, made if need be (default: none are recorded)"
    _add(group, "profile_dir", folder, metavar="DIR")
    _add(group, "log_level", "least severe log lines to write", choices=_LOG_LEVELS)
    alone = "run without the parent process that ends an executor whose step hangs"
    _add(group, "no_watchdog", alone, action="store_true")


def _add_security_flags(group: Any) -> None:
    for name, text in _SECURITY_FILES.items():
        _add(group, name, text, metavar="F")
    consent = "allow what has no TLS, or no secret, where other machines can reach it"
    _add(group, "insecure", consent, action="store_true")


def _add_model_flags(group: Any) -> None:
    _add(group, "model", "model directory or hub id (default: the demo checkpoint)", metavar="DIR|HUB_ID")
    _add(group, "device", "where to run; auto takes cuda where there is one", choices=_CHOICES["device"])
    _add(
        group,
        "dtype",
        "element type of weights and activations; auto: float32 on a CPU, else the checkpoint's own",
        choices=_CHOICES["dtype"],
    )
    _add(group, "tensor_parallel_size", "ranks, a device each, that share the model", type=int, metavar="N")
    _add(
        group,
        "all_reduce",
        "how ranks on CUDA sum; auto: small messages over each other's memory where they reach it, else NCCL",
        choices=_CHOICES["all_reduce"],
    )
    _add(
        group,
        "attention_backend",
        "code between the matrix products; auto: triton on a GPU that it serves, sdpa on the CPU, else reference",
        choices=_CHOICES["attention_backend"],
    )
    _add(group, "enforce_eager", "run without CUDA graphs", action="store_true")
    by_one = "launch layers one by one in single-stream decode too, not all in one kernel"
    _add(group, "no_resident_decode", by_one, action="store_true")
    _add(group, "load_format", "dummy: random weights, none read", choices=_CHOICES["load_format"])
    _add(group, "seed", "seed of the dummy weights", type=int, metavar="N")
    _add(group, "verify", "check in each step that KV slots hold the tokens claimed", action="store_true")


def _add_size_flags(group: Any) -> None:
    _add(group, "block_size", "tokens a KV block holds", type=int, metavar="N")
    _add(group, "num_kv_blocks", "KV blocks, block 0 included (default: what fits)", type=int, metavar="N")
    _add(group, "gpu_memory_utilization", "share of GPU memory to use", type=float, metavar="X")
    _add(group, "max_num_seqs", "most sequences that run at once", type=int, metavar="N")
    _add(group, "max_model_len", "most tokens of a sequence (default: the model's)", type=int, metavar="N")
    _add(group, "max_num_batched_tokens", "most tokens a step computes", type=int, metavar="N")
    _add(group, "max_num_decode_steps", "most decode sub-steps a plan may ask for", type=int, metavar="N")
    _add(group, "max_plans_in_flight", "most plans sent and unanswered", type=int, metavar="N")


def _add_virtual_flags(group: Any) -> None:
    _add(group, "virtual", "pretend: no weights, no torch, seeded tokens, modelled time", action="store_true")
    _add(group, "virtual_step_ms", "fixed time of a step, milliseconds", type=float, metavar="X")
    _add(group, "virtual_token_us", "time for each token computed, microseconds", type=float, metavar="X")
    _add(group, "virtual_kv_token_ns", "time for each KV token read, nanoseconds", type=float, metavar="X")
    _add(group, "virtual_vocab_size", "number of token ids (default: the model's)", type=int, metavar="N")
    _add(group, "virtual_poison", "poison freed blocks and check every read", action="store_true")
