"""An executor that holds no tensors: seeded tokens, modelled time, and a KV cache that checks every read.

Public, and free of torch: the scheduler core's tests and the simulator stand on VirtualExecutor, and
`nanoserve-executor --virtual` serves a VirtualRunner.
"""

from executor_svc.virtual.clock import Clock, InstantClock, RealClock
from executor_svc.virtual.cost import CostModel
from executor_svc.virtual.executor import VirtualExecutor
from executor_svc.virtual.runner import RunnerHooks, VirtualRunner
from executor_svc.virtual.tokens import VirtualModel, virtual_token, virtual_tokens

__all__ = [
    "Clock",
    "CostModel",
    "InstantClock",
    "RealClock",
    "RunnerHooks",
    "VirtualExecutor",
    "VirtualModel",
    "VirtualRunner",
    "virtual_token",
    "virtual_tokens",
]
