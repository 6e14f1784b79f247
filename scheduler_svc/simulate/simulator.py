"""Discrete events: requests arrive, results come back, and after each the core plans as far ahead as it may.

    scheduler                         boundary                 device
    schedule at t  ----- plan ----->  + latency    starts at max(arrival, end of the step before), runs its cost
    update         <---- result ----  + latency    at its end

The scheduler's own work takes no virtual time. A time is a whole number of nanoseconds since the first arrival, so the
same trace and flags give the same figures to the last bit.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from scheduler_svc.core.pacing import decode_steps_within
from scheduler_svc.core.request import Int32Array, Int64Array, Request, RequestRefused
from scheduler_svc.core.scheduler import CoreConfig, Scheduler
from scheduler_svc.core.stats import Stats
from scheduler_svc.core.step import Session, StepOutputs, StepResult
from scheduler_svc.load import StepTimes
from scheduler_svc.simulate.device import VirtualDevice
from scheduler_svc.simulate.plans import to_executor, to_result
from scheduler_svc.wire import StepTiming


class Arrival(NamedTuple):
    """A request of one output, and when it reaches the scheduler."""

    time_ns: int
    request: Request


class _Answer(NamedTuple):
    """A result on its way to the scheduler."""

    time_ns: int
    result: StepResult
    device_ns: int


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Integrals over time of what the core holds."""

    running_ns: int = 0
    """Of the running sequences."""
    waiting_ns: int = 0
    """Of the waiting ones."""
    held_block_ns: int = 0
    """Of the blocks that sequences hold."""
    unused_slot_ns: int = 0
    """Of the token slots of those blocks with no KV in them, nor any planned."""
    padding_ns: int = 0
    """Of the rows that a static batch keeps after their sequence ended."""
    empty_ns: int = 0
    """Time without any request."""

    def after(self, stats: Stats, duration_ns: int) -> "Occupancy":
        """Adds a stretch of time through which the core stood as `stats` says."""
        is_empty = stats.num_running == stats.num_waiting == 0
        return Occupancy(
            self.running_ns + stats.num_running * duration_ns,
            self.waiting_ns + stats.num_waiting * duration_ns,
            self.held_block_ns + stats.num_held_blocks * duration_ns,
            self.unused_slot_ns + stats.num_unused_slots * duration_ns,
            self.padding_ns + stats.num_padding * duration_ns,
            self.empty_ns + is_empty * duration_ns,
        )


@dataclass(frozen=True, slots=True)
class Simulation:
    """What happened. The requests are those accepted, in order of arrival."""

    arrival_ns: Int64Array
    """[num_requests]."""
    num_prompt_tokens: Int64Array
    """[num_requests]."""
    num_tokens: Int64Array
    """[num_requests], output tokens of each."""
    token_ids: Int32Array
    """[sum of num_tokens]: the outputs, one behind the other."""
    token_ns: Int64Array
    """[sum of num_tokens]: when the scheduler learnt of each token."""
    refused: tuple[str, ...]
    """Why requests were refused, one line each."""
    duration_ns: int
    """From the first arrival to the last event."""
    device_busy_ns: int
    block_size: int
    occupancy: Occupancy
    stats: Stats
    """Of the core, at the end."""


class Simulator:
    """A core, a device, and what is between them. Good for one `run`."""

    def __init__(
        self,
        config: CoreConfig,
        session: Session,
        device: VirtualDevice,
        *,
        boundary_latency_ns: int = 0,
        max_plan_ms: float = 0.0,
    ) -> None:
        """ValueError, naming the flag, where the core cannot work with the session."""
        self._core = Scheduler(config, session)
        self._device, self._block_size = device, session.block_size
        self._latency_ns = boundary_latency_ns
        self._max_plan_ms, self._pipeline_depth = max_plan_ms, config.pipeline_depth
        self._times = StepTimes()
        self._now_ns = 0
        self._answers: deque[_Answer] = deque()
        self._occupancy = Occupancy()
        self._accepted: list[Arrival] = []
        self._refused: list[str] = []
        self._token_batches: list[tuple[int, StepOutputs]] = []

    def run(self, arrivals: Sequence[Arrival]) -> Simulation:
        """Serves requests, given in the order of their arrival, until each has ended."""
        to_come = deque(arrivals)
        while to_come or self._answers:
            heads = [queue[0].time_ns for queue in (to_come, self._answers) if queue]
            self._advance(min(heads))
            while self._answers and self._answers[0].time_ns == self._now_ns:
                self._take(self._answers.popleft())
            while to_come and to_come[0].time_ns == self._now_ns:
                self._add(to_come.popleft())
            self._send_plans()
        stats = self._core.stats()
        assert stats.num_running == stats.num_waiting == 0, "work does not advance"
        return self._finish(stats)

    @property
    def _now_seconds(self) -> float:
        return self._now_ns * 1e-9

    def _advance(self, time_ns: int) -> None:
        self._occupancy = self._occupancy.after(self._core.stats(), time_ns - self._now_ns)
        self._now_ns = time_ns

    def _add(self, arrival: Arrival) -> None:
        assert arrival.request.n == 1
        try:
            self._core.add_request(arrival.request, self._now_seconds)
        except RequestRefused as refusal:
            self._refused.append(f"request {arrival.request.request_id}: {refusal}")
        else:
            self._accepted.append(arrival)

    def _take(self, answer: _Answer) -> None:
        self._token_batches.append((self._now_ns, self._core.update(answer.result, self._now_seconds)))
        self._times.add(StepTiming(0, 0, answer.device_ns, 0), 0.0, 0.0)

    def _send_plans(self) -> None:
        """Sends all the plans that the core will make now: the one place that asks it for them."""
        num_steps = decode_steps_within(self._max_plan_ms, self._pipeline_depth, self._times.device_ms())
        while (plan := self._core.schedule(self._now_seconds, num_steps)) is not None:
            outputs = self._device.run(to_executor(plan), self._now_ns + self._latency_ns)
            for sub_step, (end_ns, output) in enumerate(outputs):
                last = sub_step == len(outputs) - 1
                result = to_result(plan.step_id, sub_step, last, output)
                self._answers.append(_Answer(end_ns + self._latency_ns, result, output.device_ns))

    def _finish(self, stats: Stats) -> Simulation:
        # Sequences are numbered from 1 in the order in which they were accepted; a stable sort keeps each one's order.
        batches = self._token_batches
        owners = (
            np.concatenate([np.empty(0, np.int64), *(outputs.sequence_ids for _, outputs in batches)]) - 1
        )
        order = np.argsort(owners, kind="stable")
        token_ids = np.concatenate([np.empty(0, np.int32), *(outputs.token_ids for _, outputs in batches)])
        lengths = [len(outputs.token_ids) for _, outputs in batches]
        token_ns = np.repeat(np.array([time_ns for time_ns, _ in batches], np.int64), lengths)
        return Simulation(
            arrival_ns=np.array([arrival.time_ns for arrival in self._accepted], np.int64),
            num_prompt_tokens=np.array(
                [len(arrival.request.prompt_token_ids) for arrival in self._accepted], np.int64
            ),
            num_tokens=np.bincount(owners, minlength=len(self._accepted)),
            token_ids=token_ids[order],
            token_ns=token_ns[order],
            refused=tuple(self._refused),
            duration_ns=self._now_ns,
            device_busy_ns=self._device.busy_ns,
            block_size=self._block_size,
            occupancy=self._occupancy,
            stats=stats,
        )
