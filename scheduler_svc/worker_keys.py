"""How the engine's keys tell of which API worker a request is: they hold the number of its connection."""

from collections import defaultdict

from scheduler_svc.messages import Ended, Failed, Started, StepBatch

# The engine's key of a request is the number of its worker's connection and, below, the worker's own key.
_KEY_BITS = 40
MAX_WORKER_KEY = (1 << _KEY_BITS) - 1


def engine_key(number: int, key: int) -> int:
    """The engine's key of what a worker, known by the number of its connection, calls `key`."""
    return (number << _KEY_BITS) + key


def worker_number(key: int) -> int:
    """The number of the connection that an engine's key came by."""
    return key >> _KEY_BITS


def worker_key(key: int) -> int:
    """What the worker itself calls it."""
    return key & MAX_WORKER_KEY


def starts_and_ends(batch: StepBatch) -> dict[int, StepBatch]:
    """What each worker's requests began or ended in a step, by the number of its connection; tokens are left out."""
    started: dict[int, list[Started]] = defaultdict(list)
    ended: dict[int, list[Ended | Failed]] = defaultdict(list)
    for start in batch.started:
        started[worker_number(start.key)].append(start)
    for end in batch.ended:
        ended[worker_number(end.key)].append(end)
    return {
        number: StepBatch(batch.time, tuple(started[number]), None, tuple(ended[number]), batch.step_id)
        for number in [*started, *(number for number in ended if number not in started)]
    }
