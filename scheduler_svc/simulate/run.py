"""One simulation, put together from a trace, a profile and flags."""

from dataclasses import replace

from scheduler_svc.simulate.config import SimulateConfig
from scheduler_svc.simulate.device import VirtualDevice
from scheduler_svc.simulate.plans import to_limits
from scheduler_svc.simulate.profile import ExecutorProfile
from scheduler_svc.simulate.simulator import Simulation, Simulator
from scheduler_svc.simulate.trace import Trace
from scheduler_svc.simulate.workload import make_workload, with_rate


def simulate(config: SimulateConfig, trace: Trace, profile: ExecutorProfile) -> Simulation:
    """Plays a trace against a profile. ValueError, naming the flag, where they do not fit."""
    requests = with_rate(trace, config.rate, config.seed)
    session = config.session(profile, vocab_size=2)
    core = config.core(hash_seed=0)
    longest = min(session.max_model_len, (session.num_blocks - 1) * session.block_size + 1)
    # An end token is learnt of late by as many tokens as are planned meanwhile.
    slack = 0 if config.ignore_eos else config.pipeline_depth * session.max_num_decode_steps
    workload = make_workload(requests, config.seed, longest, slack)
    session = replace(session, vocab_size=workload.model.vocab_size)
    device = VirtualDevice(to_limits(session), profile.cost, workload.model)
    latency_ms = config.boundary_latency_ms
    latency_ms = profile.boundary_latency_ms if latency_ms is None else latency_ms
    simulator = Simulator(
        core,
        session,
        device,
        boundary_latency_ns=round(latency_ms * 1e6),
        max_plan_ms=config.max_plan_ms,
    )
    return simulator.run(workload.arrivals)
