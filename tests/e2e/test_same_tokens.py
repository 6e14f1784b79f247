"""Batched, cached, chunked, preempted, beside cancelled neighbours: every stream equals its run alone."""

import asyncio
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import running

from nanoserve_client import AsyncClient, Client, Load
from nanoserve_client.health import is_serving

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
from demo_tasks import HELD_OUT_SYSTEM, TASKS, make_turn

NUM_REQUESTS = 36
# Sampled tokens hang on the last bits of logits, which batching changes: in float32 too little to matter.
DTYPE = "--dtype=float32"
TINY_CACHE = ["--verify", DTYPE, "--num-kv-blocks=44", "--max-num-seqs=16", "--block-size=16"]
# Few rows, so that a static batch follows another, and for each of them the blocks that a contiguous one reserves.
FEW_ROWS = ["--verify", DTYPE, "--num-kv-blocks=129", "--max-num-seqs=4", "--max-model-len=512"]


@dataclass(frozen=True)
class Case:
    """A request, and whether its client leaves after a few events."""

    messages: tuple[dict[str, str], ...]
    temperature: float
    seed: int
    leaves_after: int | None

    def params(self) -> dict[str, object]:
        return {"temperature": self.temperature, "seed": self.seed, "max_tokens": 150}


def make_cases(seed: int) -> list[Case]:
    """Tasks of all kinds, half of them behind one of two long system prompts, half of them sampled with a seed."""
    draw = random.Random(seed)
    cases = []
    for index in range(NUM_REQUESTS):
        turn = make_turn(TASKS[index % len(TASKS)], draw, held_out=True)
        system = (
            [{"role": "system", "content": HELD_OUT_SYSTEM[index % 2][:500]}] if draw.random() < 0.5 else []
        )
        cases.append(
            Case(
                messages=(*system, {"role": "user", "content": turn.prompt}),
                temperature=draw.choice([0.0, 0.9]),
                seed=draw.getrandbits(64),
                leaves_after=draw.randint(1, 3) if draw.random() < 0.15 else None,
            )
        )
    return cases


async def run_together(address: str, cases: list[Case]) -> list[tuple[str, tuple[int, ...]] | None]:
    """All at once; None for those whose client left."""

    async def run(client: AsyncClient, case: Case) -> tuple[str, tuple[int, ...]] | None:
        stream = client.stream(case.messages, **case.params())
        seen = 0
        async for _ in stream:
            seen += 1
            if seen == case.leaves_after:
                stream.close()
                return None
        completion = await stream.result()
        return completion.text, completion.token_ids

    async with AsyncClient(address) as client:
        return await asyncio.gather(*(run(client, case) for case in cases))


def wait_until_idle(client: Client) -> Load:
    """The load once nothing runs: a cancelled call may reach the engine a moment after its client left."""
    for _ in range(200):
        load = client.get_load()
        if load.num_running_requests == load.num_waiting_requests == load.num_held_blocks == 0:
            return load
        time.sleep(0.05)
    return client.get_load()


@contextmanager
def scheduler(executor: str, *flags: str) -> Iterator[str]:
    """A scheduler of its own for an executor that others had before; yields its address."""
    with running("scheduler_svc", f"--executor={executor}", "--listen=127.0.0.1:0", *flags) as process:
        address = process.event("listening")["address"]
        while not is_serving(address):
            time.sleep(0.02)
        yield address
        assert process.end(signal.SIGTERM) == 0


@pytest.fixture(scope="module")
def few_rows() -> Iterator[str]:
    """Address of an executor for a few sequences, with room for all of them."""
    with running("executor_svc", *FEW_ROWS, "--listen=127.0.0.1:0") as process:
        yield process.event("listening")["address"]
        assert process.end(signal.SIGTERM) == 0


@pytest.fixture(scope="module")
def tiny_cache() -> Iterator[str]:
    """Address of an executor with rows for more sequences than there are blocks for."""
    with running("executor_svc", *TINY_CACHE, "--listen=127.0.0.1:0") as process:
        yield process.event("listening")["address"]
        assert process.end(signal.SIGTERM) == 0


@pytest.fixture(scope="module")
def alone(few_rows: str) -> list[tuple[str, tuple[int, ...]]]:
    """What each case gets when nothing else runs and nothing is cached."""
    with scheduler(few_rows) as address, Client(address) as client:
        answers = []
        for number, case in enumerate(make_cases(1)):
            completion = client.generate(case.messages, cache_salt=f"alone {number}", **case.params())
            assert completion.num_cached_tokens == 0
            answers.append((completion.text, completion.token_ids))
    return answers


@pytest.mark.parametrize(
    "scheduler_flags",
    [
        pytest.param([], id="defaults"),
        pytest.param(["--max-num-batched-tokens=48"], id="small_chunks"),
        pytest.param(["--pipeline-depth=1", "--no-enable-prefix-caching"], id="depth_1_uncached"),
        pytest.param(["--pipeline-depth=4", "--no-enable-chunked-prefill"], id="depth_4_unchunked"),
    ],
)
def test_every_stream_equals_its_run_alone(
    alone: list[tuple[str, tuple[int, ...]]], tiny_cache: str, scheduler_flags: list[str]
):
    cases = make_cases(1)
    with scheduler(tiny_cache, *scheduler_flags) as address:
        got = asyncio.run(run_together(address, cases))
        with Client(address) as client:
            load = wait_until_idle(client)
    for case, expected, answer in zip(cases, alone, got, strict=True):
        assert answer == expected or (answer is None and case.leaves_after is not None)
    assert None in got, "some clients are meant to leave"
    assert load.num_held_blocks == 0
    assert load.num_free_blocks + load.num_cached_blocks == load.num_total_blocks
    assert load.num_preemptions > 0, "the cache is meant to be too small"
    if "--no-enable-prefix-caching" in scheduler_flags:
        assert load.num_prefix_hit_tokens == 0
    else:
        assert load.num_prefix_hit_tokens > 0


@pytest.mark.parametrize(
    "scheduler_flags",
    [
        pytest.param(["--batching=static"], id="static"),
        pytest.param(["--batching=static", "--kv-allocation=contiguous"], id="static_contiguous"),
        pytest.param(["--batching=naive", "--no-kv-cache"], id="naive_without_kv_cache"),
    ],
)
def test_the_policies_of_the_study_change_no_token(
    alone: list[tuple[str, tuple[int, ...]]], few_rows: str, scheduler_flags: list[str]
):
    cases = make_cases(1)[:6]
    with scheduler(few_rows, *scheduler_flags) as address:
        got = asyncio.run(run_together(address, cases))
        with Client(address) as client:
            assert wait_until_idle(client).num_held_blocks == 0
    for case, expected, answer in zip(cases, alone, got, strict=False):
        assert answer == expected or (answer is None and case.leaves_after is not None)
