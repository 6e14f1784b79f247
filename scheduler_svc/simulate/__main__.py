"""`python -m scheduler_svc.simulate` is `nanoserve simulate`."""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from json import dumps
from pathlib import Path

from nanoserve.checkpoint import CheckpointError, find_checkpoint
from scheduler_svc.simulate.config import SimulateConfig, parse_config
from scheduler_svc.simulate.profile import read_profile
from scheduler_svc.simulate.public_traces import Encode, read_trace
from scheduler_svc.simulate.report import figures, table
from scheduler_svc.simulate.run import simulate
from scheduler_svc.simulate.simulator import Simulation
from scheduler_svc.simulate.trace import Trace
from scheduler_svc.tokenizer import load_tokenizer


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, or 1 with one line on stderr. Wrong usage exits with 2."""
    config = parse_config(argv)
    try:
        _simulate(config)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of stdout left; nothing may be flushed to it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (CheckpointError, OSError, ValueError) as error:
        print(f"nanoserve simulate: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _simulate(config: SimulateConfig) -> None:
    profile = read_profile(config.executor_profile)
    trace = read_trace(config.trace, config.trace_format, limit=config.limit, encode=_encoder(config))
    began = time.perf_counter()
    simulation = simulate(config, trace, profile)
    seconds = time.perf_counter() - began
    report = figures(simulation)
    if not config.json:
        _print_notes(trace, simulation)
        print(f"{config.trace} on {config.executor_profile} ({profile.source or 'no source given'})")
        print(table(report))
        print(f"simulated in {seconds:.1f} s, {len(trace.requests) / seconds:,.0f} requests/s")
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
    print(dumps(report | {"flags": flags, "profile": asdict(profile)}))


def _encoder(config: SimulateConfig) -> Encode | None:
    if config.model is None:
        return None
    return load_tokenizer(find_checkpoint(config.model, weights=False)).encode


def _print_notes(trace: Trace, simulation: Simulation) -> None:
    """What the figures leave out, on stderr."""
    if trace.num_skipped:
        print(f"{trace.num_skipped} entries of the trace are no requests and were skipped", file=sys.stderr)
    if simulation.refused:
        print(f"{len(simulation.refused)} refused, the first: {simulation.refused[0]}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
