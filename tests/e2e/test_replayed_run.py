"""A run on the demo model, recorded; verified offline; played on a fresh executor, token for token."""

import asyncio
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nanoserve_client import AsyncClient, Client, Load
from nanoserve_client.child import Child
from nanoserve_client.cli import main as nanoserve
from nanoserve_client.supervisor import LocalServer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
from demo_tasks import TASKS, make_turn

NUM_REQUESTS = 32
# So small a cache that 16 sequences do not fit; float32, in which the same batches give the same tokens.
EXECUTOR = ["--verify", "--dtype=float32", "--num-kv-blocks=60", "--max-num-seqs=16"]


async def ask_all(address: str) -> None:
    """All requests at once, half of them sampled."""
    draw = random.Random(5)
    prompts = [make_turn(TASKS[i % len(TASKS)], draw, held_out=True).prompt for i in range(NUM_REQUESTS)]
    async with AsyncClient(address) as client:
        await asyncio.gather(
            *(
                client.generate(prompt, temperature=0.9 * (i % 2), seed=i, max_tokens=80, ignore_eos=True)
                for i, prompt in enumerate(prompts)
            )
        )


def record(path: Path) -> Load:
    """Serves 32 requests and writes what passes; returns the load after."""
    with LocalServer(executor_flags=EXECUTOR, scheduler_flags=[f"--record={path}"]) as server:
        asyncio.run(ask_all(server.address))
        with Client(server.address) as client:
            return client.get_load()


@contextmanager
def fresh_executor(folder: Path) -> Iterator[str]:
    """Another executor process, without a scheduler; yields its address."""
    changed = threading.Event()
    command = [sys.executable, "-m", "executor_svc", *EXECUTOR, f"--listen=unix:{folder}/executor"]
    child = Child(command, lambda line: None, changed.set)
    try:
        assert changed.wait(60)
        assert child.listening is not None, child.last_words
        yield child.listening
    finally:
        child.kill()
        child.exited.wait()


def test_a_recorded_run_is_without_fault_and_is_repeated_token_for_token(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    path = tmp_path / "run.rec"
    assert record(path).num_preemptions > 0, "the cache is meant to be too small"
    assert nanoserve(["verify-recording", str(path)]) == 0
    with fresh_executor(tmp_path) as address:
        assert nanoserve(["replay", str(path), f"--executor={address}"]) == 0
    counts = dict(line.split() for line in capfd.readouterr().out.splitlines() if line.startswith("num_"))
    assert int(counts["num_tokens"]) >= NUM_REQUESTS * 80
    assert int(counts["num_different_tokens"]) == 0
