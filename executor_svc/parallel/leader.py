"""Rank 0: runs its own shard and tells the other ranks what to run. Order alone keeps them in step."""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import structlog
from torch._C._distributed_c10d import Store, TCPStore

from executor_svc.build import build_torch_runner, choose_device
from executor_svc.config import ExecutorConfig, to_flags
from executor_svc.models.config import read_model_config
from executor_svc.parallel.children import Children
from executor_svc.parallel.end import end_process, exit_on_signal
from executor_svc.parallel.join import (
    accept_ranks,
    check_alike,
    join_group,
    make_ranks,
    meeting_store,
    prepare_device,
)
from executor_svc.parallel.link import LeaderEnd, StartWatch
from executor_svc.parallel.peers import check_mode
from executor_svc.parallel.place import Place, is_overlapping
from executor_svc.parallel.ranked_step import RankedStep
from executor_svc.parallel.shard import Shard
from executor_svc.plan import Step
from executor_svc.runner import PendingStep, StepRunner

_LOOPBACK = "127.0.0.1"


class LeaderRunner:
    """A StepRunner of several ranks: every plan goes to the others before rank 0 runs it."""

    def __init__(self, runner: StepRunner, links: Sequence[LeaderEnd], children: Children | None) -> None:
        """`runner` is rank 0's own."""
        self.limits, self.device, self.dtype, self.fatal = (
            runner.limits,
            runner.device,
            runner.dtype,
            runner.fatal,
        )
        self._runner, self._links, self._children = runner, links, children

    def reset(self) -> None:
        """Has every rank clear all rows; returns when rank 0 has."""
        for link in self._links:
            link.reset()
        self._runner.reset()

    def launch(self, step: Step) -> PendingStep:
        """Queues a step on every rank."""
        assert step.plan.encode is not None
        encoded = step.plan.encode()
        for link in self._links:
            link.plan(encoded)
        return RankedStep(step.plan.step_id, self._runner.launch(step))

    @contextmanager
    def silence(self) -> Iterator[None]:
        """Within it this process may hold its interpreter for long: the others do not take it to be lost."""
        with ExitStack() as stack:
            for link in self._links:
                stack.enter_context(link.silence())
            yield

    def close(self) -> None:
        """Ends the other ranks; no step is unfinished on this one, so none is on them."""
        self._runner.close()
        if self._children is not None:
            self._children.closing = True
        for link in self._links:
            link.close()
        if self._children is not None:
            self._children.close()


def build_leader(config: ExecutorConfig, model_dir: Path, place: Place | None) -> LeaderRunner:
    """Rank 0's runner, when all ranks are ready; without a `place` it starts the others, on this host.

    CheckpointError and ValueError as build_torch_runner; ValueError where the model cannot be divided so.
    """
    spawns = place is None
    place = place or _place_of_own(config.tensor_parallel_size)
    model_config = read_model_config(model_dir)
    Shard(0, place.size).check(model_config)
    if not place.overlapping:
        choose_device(config.device, place.local_size - 1)  # there is one for each rank
    device = choose_device(config.device, place.device_index)
    check_mode(config.all_reduce, place, device)
    structlog.get_logger().info("waiting_for_ranks", count=place.size - 1)
    children = None
    if spawns:
        if device.type == "cpu" or place.overlapping:
            # Gloo would else take the address that the host's name has, if it has one.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        store, port = loopback_store(place.size)
        children = Children(place, to_flags(config), port)
    else:
        with exit_on_signal():
            store = meeting_store()
    prepare_device(device, place)
    try:
        with exit_on_signal(), StartWatch(_lost) as watch:  # what is waited for here may never come
            connections, store = accept_ranks(store, place, watch.add)
            check_alike(store, place, config, model_dir, device)
            join_group(store, place, device)
            ranks = make_ranks(config, model_config, place, device)
            runner = build_torch_runner(config, model_dir, ranks, place.device_index)
            ranks.smallest(0, device)  # all are ready
    except (RuntimeError, TimeoutError) as error:  # of a collective too, where another rank is lost
        end_process("rank_failed", rank=0, reason=str(error), exc_info=error)
    if children is not None:
        children.ready = True
    links = [LeaderEnd(rank, connection, _lost) for rank, connection in enumerate(connections, 1)]
    return LeaderRunner(runner, links, children)


def _place_of_own(size: int) -> Place:
    return Place(0, size, 0, size, _LOOPBACK, is_overlapping(os.environ))


def loopback_store(size: int) -> tuple[Store, int]:
    """A store that this host alone reaches, and its port: what TCPStore binds itself is open to all interfaces."""
    with socket.create_server((_LOOPBACK, 0)) as server:
        port, descriptor = server.getsockname()[1], server.detach()
    store = TCPStore(
        _LOOPBACK, port, size, is_master=True, wait_for_workers=False, master_listen_fd=descriptor
    )
    return store, port


def _lost(rank: int, reason: str) -> None:
    end_process("rank_lost", rank=rank, reason=reason)
