"""Recordings in memory: what a core and its virtual executor tell each other, as a link would have recorded it."""

from collections.abc import Callable
from typing import Any

import numpy as np
from core_harness import Harness

from nanoserve.arrays import pack_int32
from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve.executor.v1.recording_pb2 import RecordingEntry, RecordingHeader, RecordingLoss
from scheduler_svc.core.scheduler import CoreConfig
from scheduler_svc.core.step import Session, StepOutputs, StepPlan
from scheduler_svc.wire import encode_plan


class RecordingHarness(Harness):
    """A Harness that writes down what passes."""

    def __init__(self, config: CoreConfig | None = None, **session_changes: Any) -> None:
        super().__init__(config, **session_changes)
        self.entries = [RecordingEntry(header=RecordingHeader(format_version=1, model_fingerprint="model"))]
        self._epochs: dict[str, int] = {}
        self._open()

    def _open(self) -> None:
        session, epoch = self.session, self._epochs.get(self.session.instance_id, 0) + 1
        self._epochs[session.instance_id] = epoch
        opened = pb.SessionOpened(epoch=epoch, description=describe(session))
        self.entries.append(RecordingEntry(opened=opened))

    def plan(self, num_decode_steps: int = 1) -> StepPlan | None:
        plan = super().plan(num_decode_steps)
        if plan is not None:
            self.entries.append(RecordingEntry(plan=encode_plan(plan).plan))
        return plan

    def deliver(self) -> StepOutputs:
        result = self.under_way[0]
        message = pb.StepResult(
            step_id=result.step_id,
            sub_step=result.sub_step,
            last=result.last,
            status=pb.STEP_STATUS_OK,
            rows=pack_int32(result.rows),
            token_ids=pack_int32(result.token_ids),
        )
        self.entries.append(RecordingEntry(result=message))
        return super().deliver()

    def lose_session(self, **session_changes: Any) -> None:
        self.entries.append(RecordingEntry(lost=RecordingLoss(reason="as the test wants it")))
        super().lose_session(**session_changes)
        self._open()


def describe(session: Session) -> pb.ExecutorDescription:
    """The description of an executor of these sizes."""
    names = (
        "instance_id",
        "num_blocks",
        "block_size",
        "max_num_seqs",
        "max_model_len",
        "max_num_batched_tokens",
        "max_num_decode_steps",
        "max_plans_in_flight",
        "vocab_size",
    )
    sizes = {name: getattr(session, name) for name in names}
    return pb.ExecutorDescription(**sizes, model_fingerprint="model", weights_fingerprint="weights")


def eventful_recording() -> list[RecordingEntry]:
    """Chunks, shared prefixes, preemption, several steps a plan, and three sessions with two executor instances."""
    harness = RecordingHarness(CoreConfig(max_num_batched_tokens=10), num_blocks=9)
    for seed in range(3):
        harness.add([1] * 9 + [seed], max_tokens=9, seed=seed)
    for _ in range(6):
        harness.plan()
        harness.plan()
        harness.deliver()
    harness.lose_session()
    harness.add([2] * 13, max_tokens=6, seed=7, n=2)
    harness.run_to_end(num_decode_steps=3)
    harness.lose_session(instance_id="another", num_blocks=12)
    harness.add([1] * 12, max_tokens=8)
    harness.add([1] * 11, max_tokens=8)
    harness.run_to_end(num_decode_steps=2)
    harness.check_answers()
    assert harness.core.stats().num_preemptions > 0
    return harness.entries


def plans_of(entries: list[RecordingEntry]) -> list[pb.StepPlan]:
    """The plans, to be changed in place."""
    return [entry.plan for entry in entries if entry.HasField("plan")]


def results_of(entries: list[RecordingEntry]) -> list[pb.StepResult]:
    """The results, to be changed in place."""
    return [entry.result for entry in entries if entry.HasField("result")]


def first(things: list[Any], holds: Callable[[Any], Any]) -> Any:
    """The first of which something holds; the test is wrong where there is none."""
    return next(thing for thing in things if holds(thing))


def edited(data: bytes, index: int, value: int) -> bytes:
    """int32[] with one element changed."""
    numbers = np.frombuffer(data, "<i4").copy()
    numbers[index] = value
    return numbers.tobytes()


def numbers_of(data: bytes) -> list[int]:
    """int32[] as a list."""
    return np.frombuffer(data, "<i4").tolist()
