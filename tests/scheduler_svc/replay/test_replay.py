"""A recording of a real scheduler, played on executors like the recorded one and unlike it."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recordings import edited, first, numbers_of, plans_of, results_of
from scheduler_harness import LIMITS, MODEL, Executor, Service, run

from executor_svc.plan import ErrorCode, StepFailure
from executor_svc.runner import RunnerLimits
from executor_svc.virtual import RunnerHooks, VirtualModel
from nanoserve.executor.v1.recording_pb2 import RecordingEntry
from nanoserve_client.cli import main as nanoserve
from scheduler_svc.executor_access import ExecutorAccess
from scheduler_svc.recording import varint
from scheduler_svc.replay.__main__ import main
from scheduler_svc.replay.player import PlayError, play
from scheduler_svc.replay.reader import RecordingError, read_recording


def fail_at(step_id: int, failures: list[int]) -> RunnerHooks:
    """The first time that a step of this id runs, it fails."""

    def before_result(number: int) -> None:
        if number == step_id and not failures:
            failures.append(number)
            raise StepFailure(ErrorCode.INTERNAL, "as the test wants it")

    return RunnerHooks(before_result=before_result)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sessions: the first ends with a failed step, the second with the executor's life."""
    folder = tmp_path_factory.mktemp("recorded")
    path = folder / "recording"

    async def record() -> None:
        executor = Executor(f"unix:{folder}/executor")
        executor.hooks = fail_at(9, [])
        executor.start()
        async with Service(folder, executor=executor, record=str(path)) as service:
            await service.serving()
            calls = [
                asyncio.ensure_future(service.generate([i % 2] * 20, seed=i, max_tokens=40))
                for i in range(20)
            ]
            await service.until(lambda load: load.num_output_tokens >= 300)
            await executor.stop()
            executor.start()
            await asyncio.gather(*calls)

    run(record)
    return path


@pytest.fixture
def entries(recording: Path) -> list[RecordingEntry]:
    return list(read_recording(recording))


@contextlib.contextmanager
def executor_at(
    folder: Path,
    *,
    model: VirtualModel = MODEL,
    limits: RunnerLimits = LIMITS,
    hooks: RunnerHooks | None = None,
    **changes: Any,
) -> Iterator[str]:
    """Serves a virtual executor; yields its address."""
    executor = Executor(f"unix:{folder}/replayed", limits=limits)
    executor.model, executor.hooks = model, hooks or RunnerHooks()
    for name, value in changes.items():
        setattr(executor, name, value)
    executor.start()
    try:
        yield executor.address
    finally:
        asyncio.run(executor.stop())


def first_session(entries: list[RecordingEntry]) -> list[RecordingEntry]:
    return entries[: next(i for i, entry in enumerate(entries) if entry.HasField("lost"))]


def test_an_executor_like_the_recorded_one_gives_the_same_tokens(
    entries: list[RecordingEntry], tmp_path: Path
):
    with executor_at(tmp_path, hooks=fail_at(9, [])) as address:
        comparison = play(entries, ExecutorAccess(address))
    assert comparison.divergence is None
    assert comparison.num_sessions == 3
    assert comparison.num_plans == len(plans_of(entries))
    assert comparison.num_results == len(results_of(entries))
    assert comparison.num_tokens == sum(len(numbers_of(result.rows)) for result in results_of(entries))
    assert comparison.num_tokens >= 20 * 40
    assert comparison.num_different_tokens == 0


def test_a_failure_that_does_not_come_again_is_a_divergence(entries: list[RecordingEntry], tmp_path: Path):
    with executor_at(tmp_path) as address:
        divergence = play(entries, ExecutorAccess(address)).divergence
    assert divergence is not None
    assert (divergence.session, divergence.step_id, divergence.what) == (1, 9, "status")
    assert "INTERNAL" in divergence.expected
    assert divergence.got == "STEP_STATUS_OK"


def test_a_failure_that_the_recording_does_not_have_is_a_divergence(
    entries: list[RecordingEntry], tmp_path: Path
):
    with executor_at(tmp_path, hooks=fail_at(4, [])) as address:
        divergence = play(entries, ExecutorAccess(address)).divergence
    assert divergence is not None
    assert (divergence.session, divergence.step_id, divergence.what) == (1, 4, "status")


def test_the_first_other_token_is_told_with_its_row_and_position(
    entries: list[RecordingEntry], tmp_path: Path
):
    """One recorded token is changed: the third of the sequence on row 0, whose prompt has 20 tokens."""
    played = first_session(entries)
    plan = first(plans_of(played), lambda plan: 0 in [start.row for start in plan.starts])
    assert len(numbers_of(first(list(plan.starts), lambda start: start.row == 0).token_ids)) == 20
    result = [result for result in results_of(played) if 0 in numbers_of(result.rows)][2]
    index = numbers_of(result.rows).index(0)
    token = numbers_of(result.token_ids)[index]
    result.token_ids = edited(result.token_ids, index, token ^ 1)
    with executor_at(tmp_path, hooks=fail_at(9, [])) as address:
        comparison = play(played, ExecutorAccess(address))
    divergence = comparison.divergence
    assert divergence is not None
    assert (divergence.step_id, divergence.sub_step, divergence.what) == (result.step_id, 0, "token")
    assert (divergence.row, divergence.position) == (0, 22)
    assert (divergence.expected, divergence.got) == (str(token ^ 1), str(token))
    assert comparison.num_different_tokens == 1, "the rest is still compared"
    assert comparison.num_results == len(results_of(played))


def test_another_model_of_the_same_name_diverges_at_the_first_token_that_differs(
    entries: list[RecordingEntry], tmp_path: Path
):
    other = VirtualModel(LIMITS.vocab_size, end_token_id=5, end_probability=0.02)
    with executor_at(tmp_path, model=other, hooks=fail_at(9, [])) as address:
        comparison = play(entries, ExecutorAccess(address))
    assert comparison.divergence is not None
    assert (comparison.divergence.what, comparison.divergence.got) == ("token", "5")
    assert 0 < comparison.num_different_tokens < 0.1 * comparison.num_tokens


def test_plans_that_were_never_answered_are_sent_and_counted(entries: list[RecordingEntry], tmp_path: Path):
    played = first_session(entries)
    answered = next(i for i, entry in enumerate(played) if entry.result.step_id == 5)
    played = [*played[:answered], *(entry for entry in played[answered:] if entry.HasField("plan"))][:-1]
    launched: list[int] = []
    with executor_at(tmp_path, hooks=RunnerHooks(on_launch=launched.append)) as address:
        comparison = play(played, ExecutorAccess(address))
    assert comparison.divergence is None
    assert launched == [plan.step_id for plan in plans_of(played)]
    assert comparison.num_unanswered == len(launched) - 4 > 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"limits": replace(LIMITS, num_blocks=64)}, "num_blocks"),
        ({"limits": replace(LIMITS, block_size=8)}, "block_size"),
        ({"weights_fingerprint": "others"}, "weights_fingerprint"),
        ({"model_fingerprint": "another"}, "model_fingerprint"),
    ],
)
def test_an_executor_that_cannot_play_the_recording_is_refused_by_what_it_lacks(
    entries: list[RecordingEntry], tmp_path: Path, changes: dict[str, Any], named: str
):
    with (
        executor_at(tmp_path, **changes) as address,
        pytest.raises(PlayError, match=f"--executor: its {named}"),
    ):
        play(entries, ExecutorAccess(address))


def test_another_schedulers_executor_is_taken_over_only_when_told_to(
    entries: list[RecordingEntry], tmp_path: Path
):
    async def test() -> None:
        executor = Executor(f"unix:{tmp_path}/executor")
        executor.start()
        async with Service(tmp_path, executor=executor) as service:
            await service.serving()
            with pytest.raises(PlayError, match="--take-over"):
                await asyncio.to_thread(play, entries, ExecutorAccess(executor.address))
            executor.hooks = fail_at(9, [])
            comparison = await asyncio.to_thread(
                play, entries, ExecutorAccess(executor.address), take_over=True
            )
            assert comparison.num_results > 0
            assert not (await service.exit()).is_failure

    run(test)


def test_a_result_before_its_plan_is_no_recording(entries: list[RecordingEntry], tmp_path: Path):
    result = next(entry for entry in entries if entry.HasField("result"))
    with executor_at(tmp_path) as address:
        for wrong in ([entries[0], result], [*entries[:2], result]):
            with pytest.raises(RecordingError):
                play(wrong, ExecutorAccess(address))


def test_the_commands_tell_and_exit_as_they_say(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert nanoserve(["verify-recording", str(recording)]) == 0
    assert "no fault" in capsys.readouterr().out.splitlines()
    with executor_at(tmp_path, hooks=fail_at(9, [])) as address:
        assert nanoserve(["replay", str(recording), "--executor", address]) == 0
        assert "no divergence" in capsys.readouterr().out.splitlines()
        assert nanoserve(["replay", str(recording), f"--executor={address}", "--json"]) == 1
    # The failure of step 9 came once: played again it is missing.
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    outcome = json.loads(line)
    assert (outcome["num_sessions"], outcome["divergence"]["step_id"]) == (1, 9)
    assert nanoserve(["replay", str(recording), "--executor", "unix:/none"]) == 2
    assert nanoserve(["verify-recording", str(tmp_path / "none")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert all(line.startswith("nanoserve ") for line in errors)


def test_a_fault_is_told_with_its_place(
    entries: list[RecordingEntry], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    plan = first(plans_of(entries), lambda plan: plan.new_block_ids)
    plan.new_block_ids = edited(plan.new_block_ids, 0, LIMITS.num_blocks)
    path = tmp_path / "recording"
    messages = [entry.SerializeToString() for entry in entries]
    path.write_bytes(b"".join(varint(len(message)) + message for message in messages))
    assert main([str(path), "--verify-only"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"fault: session 1, step {plan.step_id}: a block that does not exist: block 65 ")


@pytest.mark.parametrize(
    "flags", [[], ["--executor=x"], ["--verify-only", "--take-over"], ["--verify-only", "--executor=unix:/x"]]
)
def test_wrong_usage_is_status_2(recording: Path, flags: list[str], capsys: pytest.CaptureFixture[str]):
    try:
        status = main([str(recording), *flags])
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert "error:" in capsys.readouterr().err
