"""What a scheduler records: everything that passes, in order, and never at the cost of serving."""

import asyncio
import contextlib
import io
import time
from pathlib import Path

import pytest
from recordings import plans_of, results_of
from scheduler_harness import Executor, Service, demo_model, run
from structlog.testing import capture_logs

from executor_svc.plan import ErrorCode, StepFailure
from executor_svc.virtual import RunnerHooks
from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve.executor.v1.recording_pb2 import RecordingEntry
from scheduler_svc.recording import Recorder, varint
from scheduler_svc.replay.reader import RecordingError, read_recording
from scheduler_svc.replay.verifier import verify

OPENED = pb.SessionOpened(epoch=1, description=pb.ExecutorDescription(instance_id="i"))


async def serve_some(service: Service, count: int = 12) -> None:
    """Requests of which some share a prefix, more than run at once."""
    prompts = ([7] * (10 + number % 3) + [number] * (number % 5) for number in range(count))
    await asyncio.gather(*(service.generate(prompt, max_tokens=30, seed=4) for prompt in prompts))


def kinds_of(entries: list[RecordingEntry]) -> list[str]:
    return [entry.WhichOneof("entry") for entry in entries]


def test_all_that_passes_is_recorded_and_without_fault(tmp_path: Path):
    path = tmp_path / "recording"

    async def test() -> None:
        async with Service(tmp_path, record=str(path)) as service:
            await serve_some(await service.serving())
            await service.executor.stop()
            service.executor.start()
            await serve_some(service)

    run(test)
    entries = list(read_recording(path))
    kinds = kinds_of(entries)
    assert kinds[:3] == ["header", "opened", "plan"]
    assert kinds.count("opened") == 2
    header = entries[0].header
    assert header.format_version == 1
    assert header.scheduler_version
    assert header.model_fingerprint == demo_model().fingerprint
    assert header.executor == entries[1].opened.description
    times = [entry.time_ns for entry in entries]
    assert times == sorted(times)
    report = verify(entries)
    assert report.fault is None
    assert report.num_tokens == 2 * 12 * 30
    assert report.num_plans == len(plans_of(entries)) == len(results_of(entries))


def test_a_failed_step_is_recorded_with_what_came_of_it(tmp_path: Path):
    path, failed = tmp_path / "recording", []

    def fail_once(step_id: int) -> None:
        if step_id == 5 and not failed:
            failed.append(step_id)
            raise StepFailure(ErrorCode.INTERNAL, "as the test wants it")

    async def test() -> None:
        executor = Executor(f"unix:{tmp_path}/executor")
        executor.hooks = RunnerHooks(before_result=fail_once)
        executor.start()
        async with Service(tmp_path, executor=executor, record=str(path)) as service:
            await serve_some(await service.serving())

    run(test)
    entries = list(read_recording(path))
    assert kinds_of(entries).count("opened") == 2
    (failure,) = [result for result in results_of(entries) if result.status == pb.STEP_STATUS_FAILED]
    assert (failure.step_id, failure.error.description) == (5, "as the test wants it")
    report = verify(entries)
    assert report.fault is None
    assert (report.num_failures, report.num_tokens) == (1, 12 * 30)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_ends_the_recording_and_not_the_service(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path, record="/dev/full") as service:
            await serve_some(await service.serving())
            await asyncio.sleep(0.6)  # the writer has looked at least once
            await serve_some(service)

    with capture_logs() as logs:
        run(test)
    (line,) = [log for log in logs if log["event"] == "recording ended"]
    assert "No space left" in line["reason"]


def test_a_file_that_cannot_be_opened_is_named_with_its_flag(tmp_path: Path):
    with pytest.raises(ValueError, match=r"--record: cannot write .*No such file"):
        Recorder(tmp_path / "missing" / "recording", "id", "model")


def test_an_earlier_recording_is_kept(tmp_path: Path):
    path = tmp_path / "recording"
    for epoch in (1, 2, 3):
        with contextlib.closing(Recorder(path, "id", "model")) as recorder:
            recorder.opened(pb.SessionOpened(epoch=epoch))
    epochs = {
        each.name: next(entry.opened.epoch for entry in read_recording(each) if entry.HasField("opened"))
        for each in tmp_path.iterdir()
    }
    assert epochs == {"recording.1": 1, "recording.2": 2, "recording": 3}


def test_what_belongs_to_no_session_is_not_recorded(tmp_path: Path):
    path = tmp_path / "recording"
    recorder = Recorder(path, "id", "model")
    recorder.plan(pb.StepPlan(step_id=1))
    recorder.opened(OPENED)
    recorder.plan(pb.StepPlan(step_id=2))
    recorder.lost("a reason")
    recorder.lost("another")
    recorder.plan(pb.StepPlan(step_id=3))
    recorder.close()
    recorder.opened(OPENED)
    recorder.close()
    entries = list(read_recording(path))
    assert kinds_of(entries) == ["header", "opened", "plan", "lost"]
    assert entries[2].plan.step_id == 2
    assert entries[3].lost.reason == "a reason"


def test_a_recording_is_on_disk_soon_after_its_session_was_lost(tmp_path: Path):
    path = tmp_path / "recording"
    recorder = Recorder(path, "id", "model")
    recorder.opened(OPENED)
    recorder.lost("a reason")
    for _ in range(200):
        with contextlib.suppress(RecordingError):
            if kinds_of(list(read_recording(path))) == ["header", "opened", "lost"]:
                break
        time.sleep(0.05)
    else:
        raise AssertionError("nothing was written")
    recorder.close()


def test_of_a_recording_cut_anywhere_the_whole_entries_are_read(tmp_path: Path):
    path = tmp_path / "recording"
    recorder = Recorder(path, "id", "model")
    recorder.opened(OPENED)
    for step_id in range(1, 4):
        recorder.plan(pb.StepPlan(step_id=step_id, decode_rows=bytes(4 * 60 * step_id)))
    recorder.close()
    whole = path.read_bytes()
    ends, entries = [0], list(read_recording(path))
    for entry in entries:
        ends.append(ends[-1] + len(varint(entry.ByteSize())) + entry.ByteSize())
    assert ends[-1] == len(whole)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        num_whole = sum(end <= length for end in ends) - 1
        if num_whole:
            assert list(read_recording(path)) == entries[:num_whole]
        else:
            with pytest.raises(RecordingError, match="holds no entry"):
                list(read_recording(path))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([b"no protobuf"], "malformed"),
        ([b""], "no known kind"),
        ([RecordingEntry(opened=OPENED).SerializeToString()], "header"),
        ([RecordingEntry(header={"format_version": 1}).SerializeToString()] * 2, "header"),
        ([RecordingEntry(header={"format_version": 2}).SerializeToString()], "version 2"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, entries: list[bytes], message: str):
    path = tmp_path / "file"
    path.write_bytes(b"".join(varint(len(entry)) + entry for entry in entries))
    with pytest.raises(RecordingError, match=message):
        list(read_recording(path))


def test_a_length_beyond_all_messages_is_refused_before_it_is_read(tmp_path: Path):
    for data in (b"\xff" * 40, varint(2**40), varint(65 * 1024 * 1024)):
        path = tmp_path / "file"
        path.write_bytes(data)
        with pytest.raises(RecordingError, match="no recording"):
            list(read_recording(path))


def test_lengths_are_as_protobuf_writes_them():
    from google.protobuf.proto import serialize_length_prefixed

    for size in (0, 1, 127, 128, 16383, 16384, 300_000):
        message = pb.StepPlan(release_rows=bytes(size))
        output = io.BytesIO()
        serialize_length_prefixed(message, output)
        data = message.SerializeToString()
        assert varint(len(data)) + data == output.getvalue()
