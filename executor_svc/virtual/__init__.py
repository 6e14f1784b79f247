"""An executor that holds no tensors: seeded tokens, modelled time, and a KV cache that checks every read.

Public, and free of torch: the scheduler core's tests and the simulator stand on VirtualExecutor and VirtualRunner, and
`nanoserve-executor --virtual` serves a VirtualRunner. What their plans and answers are made of is exported here too,
because this package is all that the simulator may import of the executor.
"""

from executor_svc.plan import (
    Prefill,
    RowMask,
    RowSampling,
    StartRow,
    Step,
    StepFailure,
    StepPlan,
    SubStepOutput,
)
from executor_svc.row_table import RowTable
from executor_svc.runner import RunnerLimits
from executor_svc.virtual.clock import Clock, InstantClock, RealClock
from executor_svc.virtual.cost import CostModel
from executor_svc.virtual.executor import VirtualExecutor
from executor_svc.virtual.runner import RunnerHooks, VirtualRunner
from executor_svc.virtual.tokens import VirtualModel, virtual_token, virtual_tokens

__all__ = [
    "Clock",
    "CostModel",
    "InstantClock",
    "Prefill",
    "RealClock",
    "RowMask",
    "RowSampling",
    "RowTable",
    "RunnerHooks",
    "RunnerLimits",
    "StartRow",
    "Step",
    "StepFailure",
    "StepPlan",
    "SubStepOutput",
    "VirtualExecutor",
    "VirtualModel",
    "VirtualRunner",
    "virtual_token",
    "virtual_tokens",
]
