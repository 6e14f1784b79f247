"""What the command line of `nanoserve simulate` says: one frozen SimulateConfig, every value checked by flag."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanoserve.flags import OneLineParser
from scheduler_svc.core.step import Session
from scheduler_svc.scheduling_flags import SchedulingFlags, add_scheduling_flags, flag
from scheduler_svc.simulate.profile import SIZES, ExecutorProfile
from scheduler_svc.simulate.public_traces import FORMATS

# Sizes where neither a flag nor the profile says one.
_DEFAULT_SIZES = {
    "num_kv_blocks": 4096,
    "block_size": 16,
    "max_num_seqs": 256,
    "max_model_len": 4096,
    "max_num_batched_tokens": 8192,
    "max_num_decode_steps": 8,
}
_TRACE_HELP = (
    "what arrives when; natively JSON lines of arrival_seconds, num_prompt_tokens or prompt_token_ids,"
    " num_output_tokens, and if wanted prefix_id with num_prefix_tokens, priority"
)
_PROFILE_HELP = "JSON: fixed_ms, token_us, kv_token_ns, and if wanted boundary_latency_ms and the sizes below"


@dataclass(frozen=True, slots=True)
class SimulateConfig(SchedulingFlags):
    """What to simulate. ValueError, naming the flag, where a value is out of range."""

    executor_profile: Path
    trace: Path
    trace_format: str | None = None
    """None: the trace's content tells."""
    model: str | None = None
    rate: float | None = None
    """Requests a second; None: as in the trace."""
    limit: int | None = None
    seed: int = 0
    ignore_eos: bool = False
    json: bool = False
    boundary_latency_ms: float | None = None
    """This and the sizes, None: as in the profile."""
    num_kv_blocks: int | None = None
    block_size: int | None = None
    max_num_seqs: int | None = None
    max_model_len: int | None = None
    max_num_decode_steps: int | None = None

    def __post_init__(self) -> None:
        SchedulingFlags.__post_init__(self)
        least = dict.fromkeys((*SIZES, "limit"), 1) | {"seed": 0, "num_kv_blocks": 2}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"--{name.replace('_', '-')}: must be at least {bound}, got {value}")
        if self.rate is not None and not (math.isfinite(self.rate) and self.rate > 0):
            raise ValueError(f"--rate: must be finite and above 0, got {self.rate}")
        latency = self.boundary_latency_ms
        if latency is not None and not (math.isfinite(latency) and latency >= 0):
            raise ValueError(f"--boundary-latency-ms: must be finite and at least 0, got {latency}")

    def session(self, profile: ExecutorProfile, vocab_size: int) -> Session:
        """The executor: flags first, then the profile, then defaults."""
        sizes = {
            name: getattr(self, name) or getattr(profile, name) or default
            for name, default in _DEFAULT_SIZES.items()
        }
        return Session(
            instance_id="simulated",
            num_blocks=sizes["num_kv_blocks"],
            block_size=sizes["block_size"],
            max_num_seqs=sizes["max_num_seqs"],
            max_model_len=sizes["max_model_len"],
            max_num_batched_tokens=sizes["max_num_batched_tokens"],
            vocab_size=vocab_size,
            max_num_decode_steps=sizes["max_num_decode_steps"],
            max_plans_in_flight=self.pipeline_depth,
        )


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(
        prog="nanoserve simulate",
        description="Plays a trace against the real scheduler and a modelled executor, in virtual time.",
        epilog="Prints a table, then one JSON object as the last line. The same arguments give the same figures.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--trace", type=Path, required=True, metavar="F", help=_TRACE_HELP)
    parser.add_argument(
        "--trace-format",
        choices=FORMATS,
        help="native JSON lines, Azure's LLM inference CSV, or ShareGPT's JSON (default: by content)",
    )
    parser.add_argument("--model", metavar="DIR|HUB_ID", help="tokenizer of a sharegpt trace's texts")
    parser.add_argument("--rate", type=float, metavar="X", help="bring the arrivals to X requests a second")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N requests of the trace")
    parser.add_argument("--seed", type=int, metavar="N", help="of made-up prompts and arrivals (default 0)")
    parser.add_argument(
        "--ignore-eos",
        action="store_true",
        help="outputs end by max_tokens, which the scheduler foresees (default: by an end token)",
    )
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")
    _add_executor(parser)
    add_scheduling_flags(parser.add_argument_group("scheduling, as nanoserve-scheduler"))
    return parser


def _add_executor(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("executor", "sizes default to the profile's, then to those shown")
    group.add_argument("--executor-profile", type=Path, required=True, metavar="F", help=_PROFILE_HELP)
    group.add_argument(
        "--boundary-latency-ms", type=float, metavar="X", help="each way (default: the profile's)"
    )
    for name, default in _DEFAULT_SIZES.items():
        if name != "max_num_batched_tokens":  # a flag of the scheduler too
            group.add_argument(flag(name), type=int, metavar="N", help=f"default {default}")


def parse_config(argv: Sequence[str] | None = None) -> SimulateConfig:
    """Reads a command line (None: this process's). A wrong one ends the process with one line and status 2."""
    parser = build_parser()
    arguments = vars(parser.parse_args(argv))
    try:
        return SimulateConfig(**arguments)
    except ValueError as error:
        parser.error(str(error))
