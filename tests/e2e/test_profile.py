"""`nanoserve profile` against real processes: every lane, one clock, and the same tokens as without."""

import asyncio
import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from test_same_tokens import make_cases, run_together, wait_until_idle

from nanoserve_client import AsyncClient, Client
from nanoserve_client.cli import main
from nanoserve_client.supervisor import LocalServer

NUM_STEPS = 20
SMALL = ["--dtype=float32", "--verify", "--num-kv-blocks=36", "--max-num-seqs=16", "--block-size=16"]


async def profile_under_load(address: str, output: Path) -> int:
    """The command's exit status, while four streams run."""
    async with AsyncClient(address) as client:
        prompts = [client.generate(f"{n} and", max_tokens=150, ignore_eos=True) for n in range(4)]
        streams = [asyncio.ensure_future(prompt) for prompt in prompts]
        flags = ["profile", "--address", address, f"--steps={NUM_STEPS}", f"--output={output}"]
        status = await asyncio.to_thread(main, flags)
        await asyncio.gather(*streams)
    return status


def read_lanes(path: Path) -> dict[str, list[dict[str, Any]]]:
    """What each lane holds."""
    events = json.loads(path.read_text())["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    lanes: dict[str, list[dict[str, Any]]] = {name: [] for name in names.values()}
    for event in events:
        if event["ph"] == "X":
            lanes[names[event["pid"]]].append(event)
    return lanes


def of_kind(events: list[dict[str, Any]], kind: str) -> dict[int, tuple[float, float]]:
    """(begin, end) by step id, microseconds."""
    kept = [event for event in events if event["args"].get("kind") == kind]
    return {e["args"]["step_id"]: (e["ts"], e["ts"] + e["dur"]) for e in kept}


@pytest.mark.parametrize(
    ("executor_flags", "scheduler_flags"),
    [
        pytest.param(["--dtype=float32"], [], id="cpu"),
        pytest.param(["--dtype=float32", "--device=cpu", "--tensor-parallel-size=2"], [], id="ranks"),
        pytest.param(
            ["--virtual", "--virtual-step-ms=2", "--virtual-vocab-size=768"],
            ["--api-workers=1"],
            id="virtual",
        ),
    ],
)
def test_a_trace_has_all_lanes_on_one_clock(
    tmp_path: Path, executor_flags: list[str], scheduler_flags: list[str]
):
    flags = [f"--profile-dir={tmp_path / 'profiles'}", "--num-kv-blocks=360", *executor_flags]
    with LocalServer(executor_flags=flags, scheduler_flags=scheduler_flags) as server:
        assert asyncio.run(profile_under_load(server.address, tmp_path / "trace.json")) == 0
    lanes = read_lanes(tmp_path / "trace.json")
    assert list(lanes) == ["scheduler", "boundary", "executor host", "device"]
    sends, results = of_kind(lanes["scheduler"], "send"), of_kind(lanes["scheduler"], "result")
    launches, encodes = (of_kind(lanes["executor host"], kind) for kind in ("launch", "encode"))
    steps = of_kind(lanes["device"], "step")
    assert len(sends) == len(launches) == len(steps) == NUM_STEPS
    assert sends.keys() == results.keys() == launches.keys() == encodes.keys() == steps.keys()
    for step_id, launch in launches.items():
        way = [sends[step_id][0], *launch, encodes[step_id][0], results[step_id][0]]
        assert way == sorted(way)
        assert steps[step_id][1] <= encodes[step_id][0] + 1e-3
    in_order = [steps[step_id] for step_id in sorted(steps)]
    assert all(one[1] <= next_[0] + 1e-3 for one, next_ in pairwise(in_order))
    operators = [event for event in lanes["device"] if event["name"] == "aten::linear"]
    if "--virtual" in executor_flags:
        assert not operators
    else:
        assert len(list((tmp_path / "profiles").glob("profile-*.json.gz"))) == 1
        middles = [event["ts"] + event["dur"] / 2 for event in operators]
        inside = [any(begin <= middle <= end for begin, end in in_order) for middle in middles]
        # torch's clock is a few microseconds off, and steps so near their results that some operators seem outside.
        assert len(middles) > NUM_STEPS
        assert sum(inside) > 0.95 * len(inside)


def test_without_the_flag_the_command_tells_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with LocalServer(executor_flags=["--virtual", "--virtual-vocab-size=768"]) as server:
        assert main(["profile", "--address", server.address, f"--output={tmp_path / 'trace.json'}"]) == 1
    assert "--profile-dir" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_profiles_change_no_token_while_requests_are_preempted_and_cancelled(tmp_path: Path):
    cases = make_cases(1)[:24]

    async def profile_again_and_again(address: str, done: asyncio.Event) -> int:
        draw, num_steps = random.Random(0), 0
        async with AsyncClient(address) as client:
            while not done.is_set():
                await client.start_profile(draw.randint(1, 20))
                await asyncio.sleep(draw.random() * 0.3)
                num_steps += (await client.stop_profile()).num_steps
        return num_steps

    async def run(address: str, *, profiled: bool) -> tuple[list[Any], int]:
        done = asyncio.Event()
        profiling = asyncio.ensure_future(profile_again_and_again(address, done)) if profiled else None
        answers = await run_together(address, cases)
        done.set()
        return answers, await profiling if profiling is not None else 0

    with (
        LocalServer(executor_flags=[*SMALL, f"--profile-dir={tmp_path}"]) as server,
        Client(server.address) as client,
    ):
        expected, _ = asyncio.run(run(server.address, profiled=False))
        before = wait_until_idle(client).num_preemptions
        for _ in range(4):  # what has to be preempted depends on who comes when, and may be nobody
            got, num_steps = asyncio.run(run(server.address, profiled=True))
            load = wait_until_idle(client)
            pairs = [pair for pair in zip(expected, got, strict=True) if None not in pair]
            assert len(pairs) > len(cases) // 2
            assert all(one == other for one, other in pairs)
            assert num_steps > 20
            if load.num_preemptions > before:
                break
    assert load.num_preemptions > before, "the cache is meant to be too small"
    assert load.num_held_blocks == 0
