"""How many threads compute a step on a CPU.

An operator waits for all of its threads. Where scheduler and clients share the machine one of them is often without a
core, and a step of many short operators then mostly waits: such a step leaves a core to them.
"""

from collections.abc import Iterable

import torch

from executor_svc.forward import BatchShape
from executor_svc.plan import Step

# Of a step with so few tokens, and of what it reads: more is work enough for all cores.
_FEW_TOKENS = 64
_FEW_BYTES = 64 * 2**20


class StepThreads:
    """All threads that torch had when this was made, or one less."""

    def __init__(self, weights: Iterable[torch.Tensor], kv_bytes_per_token: int) -> None:
        self._most = torch.get_num_threads()
        self._weight_bytes = sum(weight.nbytes for weight in weights)
        self._kv_bytes_per_token = kv_bytes_per_token

    def of(self, step: Step) -> int:
        """The number for a step, at least 1."""
        plan = step.plan
        context = int(step.decode_positions.sum()) + sum(run.first_position for run in plan.prefills)
        num_tokens = BatchShape.of(plan.decode_rows, plan.prefills).num_tokens
        num_bytes = self._weight_bytes + context * self._kv_bytes_per_token
        is_small = num_tokens <= _FEW_TOKENS and num_bytes <= _FEW_BYTES
        return max(1, self._most - is_small)
