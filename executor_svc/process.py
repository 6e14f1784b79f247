"""The executor's process: builds a runner, serves it, and stops on SIGTERM or SIGINT."""

import contextlib
import dataclasses
import os
import select
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import structlog

from executor_svc.config import ExecutorConfig, parse_config
from executor_svc.parallel.place import Place, read_place
from executor_svc.profile.profiler import Profiling
from executor_svc.progress import Page, page_of
from executor_svc.runner import StepRunner
from executor_svc.service import ExecutorServer
from executor_svc.virtual.build import DEFAULT_FINGERPRINT, build_virtual_runner
from executor_svc.watched_runner import WatchedRunner
from executor_svc.wire import Identity
from nanoserve.bearer import read_secret
from nanoserve.checkpoint import (
    CheckpointError,
    find_checkpoint,
    model_fingerprint,
    weights_fingerprint,
)
from nanoserve.logs import configure_logs
from nanoserve.parent import die_with_parent

_STOP_GRACE_SECONDS = 5.0
_FATAL_POLL_SECONDS = 0.25
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs an executor until it is told to stop.

    0 after a signal, 1 where it cannot start, a step does not end or the device is lost, 2 for a wrong flag.
    """
    for number in _SIGNALS:
        # Until there is something to stop, a signal just ends the process.
        signal.signal(number, lambda *_: sys.exit(0))
    config = parse_config(argv)
    configure_logs("executor", config.log_level)
    die_with_parent(os.environ)  # before torch, whose import takes seconds
    page = page_of(os.environ)  # and no rank finds it
    try:
        place = read_place(os.environ, config.tensor_parallel_size)
        if place is not None and place.rank > 0:
            return _follow(config, place)
        # The address first: that it is taken should not be learnt after minutes of loading.
        secret = None if config.secret_file is None else read_secret("--secret-file", config.secret_file)
        server = ExecutorServer(config.listen, config.tls, secret)
        runner, identity = build_runner(config, place, server.warm_up)
        profiling = build_profiling(config, runner)
    except (CheckpointError, ValueError) as error:
        print(f"nanoserve-executor: error: {error}", file=sys.stderr)
        return 1
    logger = structlog.get_logger()
    logger.info("starting", **dataclasses.asdict(config))
    if config.exposure_reason is not None:
        logger.warning("insecure", reason=config.exposure_reason)
    with _signals() as received:
        if page is not None:
            page.beat()  # from here on it is judged
        server.start(runner if page is None else WatchedRunner(runner, page), identity, profiling)
        logger.info(
            "listening",
            address=server.address,
            device=runner.device,
            instance_id=identity.instance_id,
            pid=os.getpid(),
        )
        _wait_for_end(received, runner, page)
        logger.info("stopping", device_lost=runner.fatal.is_set())
        stopped = server.stop(_STOP_GRACE_SECONDS)
        if not stopped:
            logger.error("stop_failed", reason="a step does not end, or the runner could not be freed")
        if runner.fatal.is_set() or not stopped:
            # A return would wait for the threads that wait for the device, or free what the device no longer has.
            os._exit(1)
    return 0


def _wait_for_end(received: socket.socket, runner: StepRunner, page: Page | None) -> None:
    """Returns when a signal has come or the device is lost, which is noticed a moment later."""
    while not runner.fatal.is_set():
        if page is not None:
            page.beat()
        if select.select([received], [], [], _FATAL_POLL_SECONDS)[0]:
            return


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """A socket that gets a byte for each signal that asks this process to stop.

    Not an Event set by a handler: Python runs handlers in the main thread alone, and does not wake it from a lock
    where the kernel gave the signal to another thread.
    """
    receiving, sending = socket.socketpair()
    with receiving, sending:
        sending.setblocking(False)
        former = signal.set_wakeup_fd(sending.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)
        try:
            yield receiving
        finally:
            signal.set_wakeup_fd(former)


def _follow(config: ExecutorConfig, place: Place) -> int:
    """Runs a rank but the first until rank 0 ends it, whom alone signals are for."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    from executor_svc.parallel.follower import follow

    follow(config, place)
    return 0


def build_runner(
    config: ExecutorConfig,
    place: Place | None = None,
    identified: Callable[[Identity], None] = lambda identity: None,
) -> tuple[StepRunner, Identity]:
    """Builds what the flags ask for, ready to run; `place` is where `torchrun` has put this process, if it did.

    `identified` is called once it is known what that will be, which is long before. CheckpointError or ValueError, one
    line, where it cannot be.
    """
    if not config.virtual:
        model_dir = find_checkpoint(config.model, weights=config.load_format != "dummy")
        identified(identity := _identity(model_dir))
        if config.tensor_parallel_size > 1:
            from executor_svc.parallel.leader import build_leader

            return build_leader(config, model_dir, place), identity
        from executor_svc.build import build_torch_runner

        return build_torch_runner(config, model_dir), identity
    try:
        virtual_dir = find_checkpoint(config.model, weights=False)
    except CheckpointError:
        if config.model is not None:
            raise
        virtual_dir = None
    identified(identity := _identity(virtual_dir))
    return build_virtual_runner(config, virtual_dir), identity


def build_profiling(config: ExecutorConfig, runner: StepRunner) -> Profiling | None:
    """What profiles of this process are recorded with; ValueError, naming the flag, where they could not be written."""
    if config.profile_dir is None:
        return None
    folder = Path(config.profile_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"--profile-dir: cannot write to {str(folder)!r}: {error.strerror}") from error
    if config.virtual:
        return Profiling(None)
    from executor_svc.parallel.leader import LeaderRunner
    from executor_svc.profile.torch_trace import TorchTrace

    trace = TorchTrace(folder, runner.silence if isinstance(runner, LeaderRunner) else contextlib.nullcontext)
    try:
        trace.warm_up()
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"--profile-dir: torch cannot record here: {error}") from error
    return Profiling(trace)


def _identity(model_dir: Path | None) -> Identity:
    """A new instance's identity; without a model directory the fingerprints are constants."""
    return Identity(
        instance_id=uuid.uuid4().hex,
        model_fingerprint=DEFAULT_FINGERPRINT if model_dir is None else model_fingerprint(model_dir),
        weights_fingerprint=DEFAULT_FINGERPRINT if model_dir is None else weights_fingerprint(model_dir),
        version=version("nanoserve"),
    )


if __name__ == "__main__":
    sys.exit(main())
