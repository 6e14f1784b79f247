"""How many threads compute a step on a CPU: short operators do not repay waking a second one."""

from collections.abc import Iterable

import torch

from executor_svc.forward import BatchShape
from executor_svc.plan import Step

# The most tokens of a small step, and the most that it reads of weights, keys and values.
_FEW_TOKENS = 16
_FEW_BYTES = 48 * 2**20


class StepThreads:
    """One thread for small steps, for others all that torch had when this was made."""

    def __init__(self, weights: Iterable[torch.Tensor], kv_bytes_per_token: int) -> None:
        self._most = torch.get_num_threads()
        self._weight_bytes = sum(weight.nbytes for weight in weights)
        self._kv_bytes_per_token = kv_bytes_per_token

    def of(self, step: Step) -> int:
        """The number for a step."""
        plan = step.plan
        if BatchShape.of(plan.decode_rows, plan.prefills).num_tokens > _FEW_TOKENS:
            return self._most
        context = int(step.decode_positions.sum()) + sum(run.first_position for run in plan.prefills)
        num_bytes = self._weight_bytes + context * self._kv_bytes_per_token
        return 1 if num_bytes <= _FEW_BYTES else self._most
