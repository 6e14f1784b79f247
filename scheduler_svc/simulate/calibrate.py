"""From measured steps to the three costs of an executor profile. A step log is JSON lines, one forward pass a line:

    num_tokens           integer >= 1: tokens computed, prefill tokens plus decoding rows
    num_context_tokens   integer >= 0: KV positions that attention read, over all rows: for each row the position of
                         its last computed token, plus one
    device_ns            number >= 0: from the start to the end of the device's work, as StepTiming reports it

Other fields are ignored, so that a log may say more. The costs are those of least squared error among all that are not
negative: the best of the ordinary solutions over each choice of costs that are not zero. Large steps have large errors,
so they weigh most; that is meant, because they are where the time goes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from scheduler_svc.simulate.profile import ExecutorProfile
from scheduler_svc.simulate.trace import FieldReader, TraceError

Float64Array = NDArray[np.float64]
_NUM_COSTS = 3


@dataclass(frozen=True, slots=True)
class StepLog:
    """Measured steps, as columns of one length."""

    num_tokens: Float64Array
    num_context_tokens: Float64Array
    device_ns: Float64Array


@dataclass(frozen=True, slots=True)
class Calibration:
    """The costs found, in nanoseconds, and how well they tell the steps they were found from."""

    fixed_ns: float
    token_ns: float
    kv_token_ns: float
    num_steps: int
    median_error: float
    """Median over the steps of |predicted - measured| / measured."""

    def profile(self, source: str) -> ExecutorProfile:
        """An executor profile of these costs, without sizes."""
        return ExecutorProfile(
            fixed_ms=self.fixed_ns * 1e-6,
            token_us=self.token_ns * 1e-3,
            kv_token_ns=self.kv_token_ns,
            source=f"{source}: {self.num_steps} steps, median error {self.median_error:.1%}",
        )


def read_step_log(name: str, lines: Iterable[str]) -> StepLog:
    """Reads a step log; TraceError names file, line and field."""
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            fields = FieldReader.of_line(f"{name}:{number}", line)
            counts = fields.integer("num_tokens", 1), fields.integer("num_context_tokens", 0)
            rows.append((*counts, fields.number("device_ns")))
    if not rows:
        raise TraceError(f"{name}: has no step")
    columns = np.array(rows, np.float64).T
    return StepLog(columns[0], columns[1], columns[2])


def calibrate(log: StepLog) -> Calibration:
    """Finds the costs; ValueError where the steps are too much alike to tell one cost from another."""
    features = np.stack([np.ones(len(log.device_ns)), log.num_tokens, log.num_context_tokens], axis=1)
    scale = np.maximum(features.max(axis=0), 1.0)
    scaled = features / scale
    if np.linalg.matrix_rank(scaled) < _NUM_COSTS:
        raise ValueError(
            "the steps are too much alike to tell the fixed cost, the cost of a token and that of a KV position apart"
        )
    costs = _nonnegative_least_squares(scaled, log.device_ns) / scale
    errors = np.abs(features @ costs - log.device_ns) / np.maximum(log.device_ns, 1.0)
    fixed_ns, token_ns, kv_token_ns = costs.tolist()
    return Calibration(fixed_ns, token_ns, kv_token_ns, len(errors), float(np.median(errors)))


def _nonnegative_least_squares(features: Float64Array, target: Float64Array) -> Float64Array:
    """argmin |features x - target|^2 over x >= 0; `features` [n, m] has full rank, and m is small.

    The optimum solves the unconstrained problem over the columns where it is not zero, so it is found among the
    2^m - 1 choices of columns, and every other choice with a solution >= 0 is no better.
    """
    num_columns = features.shape[1]
    best, best_error = np.zeros(num_columns), float(target @ target)
    for count in range(1, num_columns + 1):
        for columns in map(list, combinations(range(num_columns), count)):
            solution = np.linalg.lstsq(features[:, columns], target, rcond=None)[0]
            residual = features[:, columns] @ solution - target
            if (solution >= 0).all() and float(residual @ residual) < best_error:
                best_error = float(residual @ residual)
                best = np.zeros(num_columns)
                best[columns] = solution
    return best
