"""A rank but the first: runs the plans that rank 0 sends, in their order, and ends when rank 0 does."""

import contextlib
import functools
import os
import threading
from queue import SimpleQueue

import structlog
import torch

from executor_svc import wire
from executor_svc.build import build_torch_runner, choose_device
from executor_svc.config import ExecutorConfig
from executor_svc.models.config import read_model_config
from executor_svc.parallel.end import end_process
from executor_svc.parallel.join import (
    check_alike,
    connect_to_leader,
    join_group,
    make_ranks,
    meeting_store,
    prepare_device,
)
from executor_svc.parallel.link import FollowerEnd, StartWatch
from executor_svc.parallel.place import Place
from executor_svc.parallel.ranked_step import RankedStep
from executor_svc.parallel.shard import Shard
from executor_svc.plan import StepFailure
from executor_svc.row_table import RowTable
from executor_svc.runner import PendingStep, StepRunner, sub_steps
from nanoserve.checkpoint import find_checkpoint
from nanoserve.executor.v1 import executor_pb2 as pb

_Waited = tuple[PendingStep, int]


def follow(config: ExecutorConfig, place: Place) -> None:
    """Returns when rank 0 says so; whatever else happens ends the process with status 1."""
    try:
        runner, link = _start(config, place)
        _Follower(runner).run(link)
    except Exception as error:
        end_process("rank_failed", rank=place.rank, reason=str(error), exc_info=error)


def _start(config: ExecutorConfig, place: Place) -> tuple[StepRunner, FollowerEnd]:
    structlog.get_logger().info("waiting_for_rank_0", rank=place.rank)
    connection, store = connect_to_leader(meeting_store(), place)
    with StartWatch(_lost) as watch:
        watch.add(0, connection)  # before what may fail: rank 0 sees it end
        model_dir = find_checkpoint(config.model, weights=config.load_format != "dummy")
        model_config = read_model_config(model_dir)
        Shard(place.rank, place.size).check(model_config)
        device = choose_device(config.device, place.device_index)
        prepare_device(device, place)
        check_alike(store, place, config, model_dir, device)
        join_group(store, place, device)
        ranks = make_ranks(config, model_config, place, device)
        runner = build_torch_runner(config, model_dir, ranks, place.device_index)
        ranks.smallest(0, device)  # all are ready
    structlog.get_logger().info("rank_ready", rank=place.rank, device=runner.device, pid=os.getpid())
    return runner, FollowerEnd(connection, functools.partial(_lost, 0))


def _lost(rank: int, reason: str) -> None:
    end_process("rank_lost", rank=rank, reason=reason)


class _Follower:
    """Launches plans as they come; a thread waits for them, so that they free what they hold."""

    def __init__(self, runner: StepRunner) -> None:
        self._runner = runner
        self._launched: SimpleQueue[_Waited | threading.Event] = SimpleQueue()
        threading.Thread(target=self._wait, name="rank-waiter", daemon=True).start()

    def run(self, link: FollowerEnd) -> None:
        """Takes plans until rank 0 ends them."""
        limits = self._runner.limits
        table = RowTable(limits)
        for message in link.messages():
            if message is None:
                self._settle()
                self._runner.reset()
                table = RowTable(limits)
                continue
            step = table.apply(wire.decode_plan(pb.StepPlan.FromString(message), limits.vocab_size))
            launched = RankedStep(step.plan.step_id, self._runner.launch(step))
            self._launched.put((launched, len(sub_steps(step))))
        self._settle()
        self._runner.close()

    def _settle(self) -> None:
        """Returns when nothing that was launched is unfinished."""
        settled = threading.Event()
        self._launched.put(settled)
        settled.wait()

    def _wait(self) -> None:
        try:
            self._wait_for_all()
        except Exception as error:
            end_process("rank_failed", reason=str(error), exc_info=error)

    def _wait_for_all(self) -> None:
        if self._runner.device.startswith("cuda"):
            torch.cuda.set_device(self._runner.device)
        while True:
            item = self._launched.get()
            if isinstance(item, threading.Event):
                item.set()
                continue
            pending, num_sub_steps = item
            with contextlib.suppress(StepFailure):  # rank 0 has the same, and tells of it
                for sub_step in range(num_sub_steps):
                    pending.wait(sub_step)
