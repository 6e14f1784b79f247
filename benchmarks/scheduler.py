"""What a step costs the scheduler: the core alone, then the whole scheduler side of the boundary.

Steady decode and churn at growing numbers of running sequences, prefix hashing and look-up, and schedule + encode +
decode the result + update. Prints a table, then one JSON object, last. Times are of this machine: compare ratios only.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from statistics import median
from time import perf_counter

import numpy as np

from nanoserve.arrays import pack_int32
from nanoserve.executor.v1 import executor_pb2 as pb
from scheduler_svc.core.request import Request
from scheduler_svc.core.scheduler import CoreConfig, Scheduler
from scheduler_svc.core.step import Session, StepPlan, StepResult
from scheduler_svc.wire import StepReport, decode_result, encode_plan

BLOCK_SIZE, PROMPT, VOCAB_SIZE = 16, 64, 50_000
END_TOKEN = VOCAB_SIZE - 1
SIZES = (16, 256, 1024, 4096)
WARM_UP, STEPS = 40, 200


class Loop:
    """A core at depth 2 and an executor that samples the same token always, at no cost."""

    def __init__(self, num_sequences: int, max_tokens: int, seed: int) -> None:
        budget = max(8192, num_sequences)
        num_blocks = num_sequences * (-(-(PROMPT + max_tokens) // BLOCK_SIZE) + 1) + 1
        session = Session(
            "benchmark", num_blocks, BLOCK_SIZE, num_sequences, PROMPT + max_tokens, budget, VOCAB_SIZE
        )
        self.core = Scheduler(CoreConfig(budget), session)
        self.max_tokens = max_tokens
        self.random = np.random.default_rng(seed)
        self.results: deque[StepResult] = deque()
        self.seconds = 0.0
        """Spent in the core's `schedule` and `update`; what the pretended executor takes is not the core's."""

    def add(self, count: int) -> None:
        """Adds requests with random prompts."""
        for _ in range(count):
            prompt = self.random.integers(0, END_TOKEN, PROMPT, dtype=np.int32)
            request = Request("r", prompt, self.max_tokens, end_token_ids=(END_TOKEN,))
            start = perf_counter()
            self.core.add_request(request, start)
            self.seconds += perf_counter() - start

    def step(self) -> int:
        """One step of the loop: plan ahead, then take in the oldest result; returns the tokens it made known."""
        start = perf_counter()
        plan = self.core.schedule(0.0)
        self.seconds += perf_counter() - start
        if plan is not None:
            rows = sampled_rows(plan)
            self.results.append(StepResult(plan.step_id, 0, True, rows, np.full(len(rows), 7, np.int32)))
        if plan is not None and len(self.results) < 2:
            return 0
        start = perf_counter()
        outputs = self.core.update(self.results.popleft(), 0.0)
        self.seconds += perf_counter() - start
        return len(outputs.token_ids)


def sampled_rows(plan: StepPlan) -> np.ndarray:
    """Rows that a plan of one sub-step samples, in the order of its result."""
    prefills = np.array([chunk.row for chunk in plan.prefills if chunk.samples], np.int32)
    return np.concatenate([prefills, plan.decode_rows])


def timed(action: Callable[[], object], times: int) -> float:
    """Median seconds of one call."""
    seconds = []
    for _ in range(times):
        start = perf_counter()
        action()
        seconds.append(perf_counter() - start)
    return median(seconds)


def steady(num_sequences: int) -> float:
    """Microseconds of a step of steady decode: the median of means over 16 steps, one of which allocates for a row."""
    loop = Loop(num_sequences, max_tokens=WARM_UP + 2 * STEPS, seed=0)
    loop.add(num_sequences)
    while loop.core.stats().num_waiting:
        loop.step()
    for _ in range(WARM_UP):
        loop.step()
    runs = []
    for _ in range(STEPS // BLOCK_SIZE):
        before = loop.seconds
        for _ in range(BLOCK_SIZE):
            loop.step()
        runs.append((loop.seconds - before) / BLOCK_SIZE)
    return median(runs) * 1e6


def churn(num_sequences: int) -> float:
    """Microseconds of a step in which one sequence in 32 ends and as many arrive: outputs of 32 tokens."""
    loop = Loop(num_sequences, max_tokens=32, seed=0)
    share = max(1, num_sequences // 32)

    def step() -> None:
        loop.add(share)
        loop.step()

    for _ in range(2 * WARM_UP):
        step()
    before = loop.seconds
    for _ in range(STEPS):
        step()
    return (loop.seconds - before) / STEPS * 1e6


def prefix_blocks() -> float:
    """Microseconds a block to hash, look up and confirm the prefix of a prompt of 1,024 blocks, all of it cached."""
    num_blocks = 1024
    session = Session("benchmark", 2 * num_blocks, BLOCK_SIZE, 1, num_blocks * BLOCK_SIZE, 8192, VOCAB_SIZE)
    core = Scheduler(CoreConfig(8192), session)
    prompt = np.random.default_rng(0).integers(0, END_TOKEN, num_blocks * BLOCK_SIZE - 8, dtype=np.int32)

    def serve() -> None:
        core.add_request(Request("r", prompt, 1), 0.0)
        plan = core.schedule(0.0)
        assert plan is not None
        rows = sampled_rows(plan)
        core.update(StepResult(plan.step_id, 0, True, rows, np.full(len(rows), 7, np.int32)), 0.0)

    serve()
    return timed(serve, 50) / (num_blocks - 1) * 1e6


def full_side(num_sequences: int) -> float:
    """Microseconds of schedule + encode + decode the result + update, in steady decode."""
    loop = Loop(num_sequences, max_tokens=WARM_UP + 2 * STEPS, seed=0)
    loop.add(num_sequences)
    while loop.core.stats().num_waiting:
        loop.step()
    answers: deque[bytes] = deque()
    while loop.results:
        loop.core.update(loop.results.popleft(), 0.0)

    def step() -> None:
        plan = loop.core.schedule(0.0)
        if plan is not None:
            encode_plan(plan).SerializeToString()
            answers.append(answer_to(plan))
        if len(answers) == 2:
            report = decode_result(pb.StepResult.FromString(answers.popleft()))
            assert isinstance(report, StepReport)
            loop.core.update(report.result, 0.0)

    for _ in range(WARM_UP):
        step()
    return timed(step, STEPS) * 1e6


def answer_to(plan: StepPlan) -> bytes:
    """The executor's answer to a plan, on the wire."""
    rows = sampled_rows(plan)
    return pb.StepResult(
        step_id=plan.step_id,
        last=True,
        status=pb.STEP_STATUS_OK,
        rows=pack_int32(rows),
        token_ids=pack_int32(np.full(len(rows), 7)),
        timing=pb.StepTiming(device_ns=1),
    ).SerializeToString()


def environment() -> dict[str, str]:
    """What the figures were measured with."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "protobuf": version("protobuf"),
        "commit": commit.stdout.strip() or "unknown",
        "date": date.today().isoformat(),
    }


def main() -> int:
    """Runs the command line."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    report: dict[str, object] = {}
    print(
        f"{'sequences':>10} {'steady us/step':>15} {'us/sequence':>12} {'churn us/step':>14} {'us/sequence':>12}"
    )
    steady_us, churn_us = {}, {}
    for size in SIZES:
        one, other = steady(size), churn(size)
        steady_us[str(size)], churn_us[str(size)] = round(one / size, 3), round(other / size, 3)
        print(f"{size:>10} {one:>15.1f} {one / size:>12.3f} {other:>14.1f} {other / size:>12.3f}")
    report["steady_us_per_sequence"], report["churn_us_per_sequence"] = steady_us, churn_us
    report["prefix_us_per_block"] = round(prefix_blocks(), 3)
    print(f"prefix hash + look-up + confirm: {report['prefix_us_per_block']} us a block")
    whole = full_side(256)
    report["full_side_us_per_sequence"] = {"256": round(whole / 256, 3)}
    print(f"whole scheduler side of a step at 256: {whole:.1f} us, {whole / 256:.3f} us a sequence")
    print(json.dumps(report | environment()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
