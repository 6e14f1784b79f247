"""`nanoserve-scheduler`: serves until SIGTERM or SIGINT, which drain; SIGHUP has the API keys read again."""

import asyncio
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import structlog

from nanoserve.checkpoint import CheckpointError, find_checkpoint
from nanoserve.logs import configure_logs
from scheduler_svc.collector import settle_collector
from scheduler_svc.config import SchedulerConfig, parse_config
from scheduler_svc.engine import EngineExit
from scheduler_svc.model import Model, load_model
from scheduler_svc.security_flags import security_warnings
from scheduler_svc.server import SchedulerServer

_log = structlog.get_logger()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a scheduler; returns the exit status. What stops it from starting is one line on stderr."""
    config = parse_config(argv)
    configure_logs("scheduler", config.log_level)
    try:
        folder = find_checkpoint(config.model, weights=False)
        model = load_model(folder, config.served_model_name or Path(config.model or folder).name)
        exit_ = asyncio.run(_serve(config, model))
    except (CheckpointError, ValueError) as error:
        return _fail(str(error))
    if exit_.is_failure:
        return _fail(exit_.reason)
    _log.info("stopped", reason=exit_.reason)
    return 0


def _fail(reason: str) -> int:
    print(f"nanoserve-scheduler: error: {reason}", file=sys.stderr)
    return 1


async def _serve(config: SchedulerConfig, model: Model) -> EngineExit:
    """Serves until the engine stops or a signal comes."""
    server = SchedulerServer(config, model)
    signalled = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled.set)
    if config.api_key_file is not None:
        loop.add_signal_handler(signal.SIGHUP, server.reload_keys)
    for reason in security_warnings(config):
        _log.warning("insecure", reason=reason)
    address = await server.start()
    settle_collector()
    announcement = asyncio.ensure_future(_announce(server, address, config))
    engine, signals = asyncio.ensure_future(server.wait()), asyncio.ensure_future(signalled.wait())
    await asyncio.wait([engine, signals], return_when=asyncio.FIRST_COMPLETED)
    if signalled.is_set() and not engine.done():
        _log.info("draining", timeout_seconds=config.drain_timeout)
        draining = asyncio.ensure_future(server.drain())
        await asyncio.wait([engine, draining], return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
    exit_ = engine.result() if engine.done() else EngineExit("drained", is_failure=False)
    for task in (announcement, signals, engine):
        task.cancel()
    await server.stop()
    return exit_


async def _announce(server: SchedulerServer, address: str, config: SchedulerConfig) -> None:
    """Says, when requests are served, where."""
    await server.serving.wait()
    _log.info("listening", address=address, config=asdict(config))


if __name__ == "__main__":
    sys.exit(main())
