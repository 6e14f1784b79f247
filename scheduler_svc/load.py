"""The load as the engine reports it: what the core counts, and where the time of recent steps went."""

from collections import deque
from operator import add

import numpy as np

from scheduler_svc.core.stats import Stats
from scheduler_svc.messages import LoadReply, StepMeans, StepTotals
from scheduler_svc.wire import StepTiming

_NUM_RECENT_STEPS = 100


class StepTimes:
    """Keeps the times of the last 100 steps, and the sums over all."""

    def __init__(self) -> None:
        # Columns as in StepMeans, in seconds.
        self._steps: deque[tuple[float, ...]] = deque(maxlen=_NUM_RECENT_STEPS)
        self._totals = (0.0,) * 6
        self._recent_device_seconds = 0.0

    def add(self, timing: StepTiming, round_trip_seconds: float, schedule_seconds: float) -> None:
        """Takes in a step whose result came."""
        executor = (timing.device_ns, timing.host_ns, timing.queue_ns, timing.idle_ns)
        step = (*(ns * 1e-9 for ns in executor), round_trip_seconds, schedule_seconds)
        if len(self._steps) == _NUM_RECENT_STEPS:
            self._recent_device_seconds -= self._steps[0][0]
        self._recent_device_seconds += step[0]
        self._steps.append(step)
        self._totals = tuple(map(add, self._totals, step))

    def device_ms(self) -> float:
        """Mean device time of the recent steps, in milliseconds; 0 before the first."""
        return 1e3 * self._recent_device_seconds / len(self._steps) if self._steps else 0.0

    def means(self) -> StepMeans | None:
        """The means; None before the first step."""
        if not self._steps:
            return None
        return StepMeans(*(np.array(self._steps).mean(axis=0) * 1e3).tolist())

    def totals(self) -> StepTotals | None:
        """The sums; None before the first step."""
        return StepTotals(*self._totals) if self._steps else None


def load_reply(key: int, stats: Stats | None, times: StepTimes, *, epoch: int, draining: bool) -> LoadReply:
    """The answer to a LoadQuery; `stats` is None before the first session, `epoch` 0 while there is none."""
    if stats is None:
        return LoadReply(key, draining=draining)
    return LoadReply(
        key,
        num_running_requests=stats.num_running,
        num_waiting_requests=stats.num_waiting,
        num_total_blocks=stats.num_total_blocks,
        num_free_blocks=stats.num_free_blocks,
        num_cached_blocks=stats.num_cached_blocks,
        num_held_blocks=stats.num_held_blocks,
        num_shared_blocks=stats.num_shared_blocks,
        num_unused_slots=stats.num_unused_slots,
        num_preemptions=stats.num_preemptions,
        num_prefix_query_tokens=stats.num_prefix_query_tokens,
        num_prefix_hit_tokens=stats.num_prefix_hit_tokens,
        num_steps=stats.num_steps,
        num_output_tokens=stats.num_output_tokens,
        num_late_tokens=stats.num_late_tokens,
        num_padded_tokens=stats.num_padded_tokens,
        num_plans_in_flight=stats.num_plans_in_flight,
        step_means=times.means(),
        step_totals=times.totals(),
        executor_epoch=epoch,
        executor_healthy=epoch != 0,
        draining=draining,
    )
