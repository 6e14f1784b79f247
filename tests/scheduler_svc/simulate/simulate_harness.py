"""Small simulations: an executor whose every KV read is checked."""

from collections.abc import Sequence
from dataclasses import replace

from executor_svc.virtual import CostModel
from scheduler_svc.core.scheduler import CoreConfig
from scheduler_svc.core.step import Session
from scheduler_svc.simulate.device import VirtualDevice
from scheduler_svc.simulate.plans import to_limits
from scheduler_svc.simulate.simulator import Simulation, Simulator
from scheduler_svc.simulate.trace import TraceRequest
from scheduler_svc.simulate.workload import Workload, make_workload

MS, US = 1_000_000, 1_000
# Powers of two and whole numbers, so that the arithmetic of the tests is exact.
COST = CostModel(step_ns=4 * MS, token_ns=8 * US, kv_token_ns=16)


def make_session(**changes) -> Session:
    """An executor with room for everything: 1,024 blocks of 4 tokens, 64 rows, 256 tokens a step."""
    sizes = {
        "instance_id": "simulated",
        "num_blocks": 1024,
        "block_size": 4,
        "max_num_seqs": 64,
        "max_model_len": 512,
        "max_num_batched_tokens": 256,
        "vocab_size": 2,
    }
    return Session(**(sizes | changes))


def play(
    requests: Sequence[TraceRequest],
    *,
    depth: int = 1,
    latency_ns: int = 0,
    slack: int = 0,
    cost: CostModel = COST,
    seed: int = 0,
    caching: bool = True,
    max_plan_ms: float = 0.0,
    priority_aging_seconds: float | None = None,
    **session_changes,
) -> tuple[Simulation, Workload]:
    """Simulates requests that are in order of arrival."""
    session = make_session(**session_changes)
    longest = min(session.max_model_len, (session.num_blocks - 1) * session.block_size + 1)
    workload = make_workload(requests, seed, longest, slack)
    session = replace(session, vocab_size=workload.model.vocab_size)
    config = CoreConfig(
        session.max_num_batched_tokens,
        pipeline_depth=depth,
        enable_prefix_caching=caching,
        priority_aging_seconds=priority_aging_seconds,
    )
    device = VirtualDevice(to_limits(session), cost, workload.model, checked=True)
    simulator = Simulator(config, session, device, boundary_latency_ns=latency_ns, max_plan_ms=max_plan_ms)
    return simulator.run(workload.arrivals), workload
