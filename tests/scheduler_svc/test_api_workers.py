"""API workers as processes: killed, restarted, and left without their engine."""

import asyncio
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from processes import Process
from scheduler_harness import MODEL, Executor, Service, generate_request, refused, run
from test_scheduler_process import scheduler, start_stream, virtual_executor

from nanoserve.address import CHANNEL_OPTIONS
from nanoserve.checkpoint import demo_checkpoint
from nanoserve.v1 import inference_pb2 as pb
from nanoserve.v1.inference_pb2_grpc import InferenceServiceStub
from scheduler_svc.worker_pool import WorkerFlags, WorkerPool

pytestmark = pytest.mark.e2e
NUM_TOKENS = 200
# So that each channel has a connection of its own, which the kernel gives to one worker or another.
OPTIONS = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def workers_of(server: Process) -> list[int]:
    """Process ids of a scheduler's API workers."""
    pid = server.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def read(channel: grpc.aio.Channel, seed: int, begun: asyncio.Semaphore) -> Any:
    """A stream's token ids, or the status that broke it."""
    token_ids: list[int] = []
    try:
        async for message in InferenceServiceStub(channel).Generate(
            generate_request([1, 2, 3], seed=seed, max_tokens=NUM_TOKENS), timeout=30
        ):
            if message.seq == 0:
                begun.release()
            token_ids += message.delta.token_ids
    except grpc.aio.AioRpcError as error:
        return error.code()
    return token_ids


def test_a_killed_worker_breaks_its_own_streams_and_is_started_again(tmp_path: Path):
    async def test() -> None:
        executor = Executor(f"unix:{tmp_path}/ex", step_ms=10)
        executor.start()
        async with Service(tmp_path, executor=executor, api_workers=2) as service:
            await service.serving()
            pool = service.server.api
            assert isinstance(pool, WorkerPool)
            channels = [grpc.aio.insecure_channel(service.address, options=OPTIONS) for _ in range(12)]
            begun = asyncio.Semaphore(0)
            reads = [asyncio.ensure_future(read(c, i, begun)) for i, c in enumerate(channels)]
            for _ in range(8):  # as many as have rows
                await begun.acquire()
            victim = pool.processes[0]
            os.kill(victim.pid, signal.SIGKILL)
            answers = await asyncio.gather(*reads)
            broken = [answer for answer in answers if isinstance(answer, grpc.StatusCode)]
            whole = [(i, answer) for i, answer in enumerate(answers) if isinstance(answer, list)]
            assert set(broken) == {grpc.StatusCode.UNAVAILABLE}
            assert whole
            for seed, token_ids in whole:
                assert token_ids == [MODEL.token(seed, 3 + i) for i in range(NUM_TOKENS)]
            for channel in channels:
                await channel.close()
            async with asyncio.timeout(20):
                while pool.processes.get(0) in (None, victim) or len(pool.listening) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            for _ in range(10):  # several connections, so both workers
                async with grpc.aio.insecure_channel(service.address, options=OPTIONS) as channel:
                    stub: Any = InferenceServiceStub(channel)
                    model = await stub.GetModel(pb.GetModelRequest(), wait_for_ready=True, timeout=20)
                    assert model.vocab_size == 768
            load = await service.until_idle()
            # What was broken was not computed to its end.
            assert (
                load.num_output_tokens < (len(whole) + 1 + len(broken) // 2) * NUM_TOKENS + len(broken) * 60
            )

    run(test)


def test_a_worker_that_hangs_is_killed_and_started_again(tmp_path: Path):
    """Idle, so that nothing is unread. Short pings, so the other worker may be taken for dead too on a busy machine."""

    async def test() -> None:
        flags = WorkerFlags(demo_checkpoint(), "demo", "info")
        pool = WorkerPool("127.0.0.1:0", 2, flags, lambda command: None, ping_seconds=0.1)
        await pool.start()
        victim = pool.processes[0]
        os.kill(victim.pid, signal.SIGSTOP)
        async with asyncio.timeout(50):
            assert await victim.wait() == -signal.SIGKILL
            while pool.processes.get(0) in (None, victim) or len(pool.listening) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await pool.stop()

    run(test)


def test_a_worker_that_stops_reading_blocks_nobody(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path, api_workers=2) as service:
            await service.serving()
            pool = service.server.api
            assert isinstance(pool, WorkerPool)
            channels = [grpc.aio.insecure_channel(service.address, options=OPTIONS) for _ in range(12)]
            begun = asyncio.Semaphore(0)
            reads = [asyncio.ensure_future(read(c, i, begun)) for i, c in enumerate(channels)]
            os.kill(pool.processes[0].pid, signal.SIGSTOP)
            done, waiting = await asyncio.wait(reads, timeout=10, return_when=asyncio.FIRST_COMPLETED)
            assert done
            os.kill(pool.processes[0].pid, signal.SIGCONT)
            if waiting:
                await asyncio.wait(waiting)
            for seed, task in enumerate(reads):
                assert task.result() == [MODEL.token(seed, 3 + i) for i in range(NUM_TOKENS)]
            for channel in channels:
                await channel.close()

    run(test)


def test_requests_of_all_workers_share_ids_and_queue(tmp_path: Path):
    async def test() -> None:
        executor = Executor(f"unix:{tmp_path}/ex", step_ms=10)
        executor.start()
        async with Service(tmp_path, executor=executor, api_workers=2) as service:
            await service.serving()
            running = asyncio.ensure_future(service.generate([1], max_tokens=200, request_id="mine"))
            await service.until(lambda load: load.num_running_requests == 1)
            for _ in range(8):  # by several connections, so by both workers
                async with grpc.aio.insecure_channel(service.address, options=OPTIONS) as channel:
                    with refused(grpc.StatusCode.ALREADY_EXISTS, "request_id"):
                        request = generate_request([1], request_id="mine")
                        await InferenceServiceStub(channel).Generate(request, timeout=20).read()
            running.cancel()
            await service.until_idle()

    run(test)


def test_a_killed_engine_takes_its_workers_along(tmp_path: Path):
    with virtual_executor(tmp_path), scheduler(tmp_path, "--api-workers=2") as server:
        address = server.event("listening")["address"]
        workers = workers_of(server)
        assert len(workers) == 2
        channel, call = start_stream(address, 1500)
        with channel:
            next(call)
            server.process.send_signal(signal.SIGKILL)
            with pytest.raises(grpc.RpcError) as broken:
                list(call)
            assert broken.value.code() is grpc.StatusCode.UNAVAILABLE
        # The workers hold the log's pipe too: its end is theirs.
        server.end()
        assert not any(map(is_alive, workers))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends processes with their parent")
def test_a_killed_engine_leaves_its_port_though_workers_are_stopped_or_starting(tmp_path: Path):
    with virtual_executor(tmp_path), scheduler(tmp_path, "--api-workers=2") as server:
        address = server.event("listening")["address"]
        stopped, killed = workers_of(server)
        os.kill(stopped, signal.SIGSTOP)
        os.kill(killed, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while len(new := set(workers_of(server)) - {stopped, killed}) != 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        with scheduler(tmp_path, f"--listen={address}") as successor:
            assert successor.event("listening")["address"] == address
        server.end()
        assert not any(map(is_alive, {stopped, *new}))


def test_a_port_in_use_is_told_by_its_flag(tmp_path: Path):
    async def test() -> None:
        other = Executor(f"unix:{tmp_path}/other")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(ValueError, match=r"--listen: .*in use"):
                await Service(tmp_path, executor=other, listen=address, api_workers=2).__aenter__()
        async with Service(tmp_path, api_workers=1) as first:
            for api_workers in (0, 1):
                second = Service(tmp_path, executor=other, listen=first.address, api_workers=api_workers)
                with pytest.raises(ValueError, match=r"--listen: .*in use"):
                    await second.__aenter__()

    run(test)


async def kill_before_it_listens(held_up_seconds: float = 0.0) -> None:
    """The loop is held up behind the kill."""
    pool = WorkerPool("127.0.0.1:0", 2, WorkerFlags(demo_checkpoint(), "demo", "info"), lambda command: None)
    starting = asyncio.ensure_future(pool.start())
    while 1 not in pool.processes:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    pool.processes[1].kill()
    time.sleep(held_up_seconds)  # noqa: ASYNC251 (that is the point)
    await starting
    assert pool.listening == {0, 1}
    await pool.stop()


def test_a_worker_that_is_killed_before_it_listens_is_started_again():
    run(kill_before_it_listens)


@pytest.mark.skipif(sys.platform != "linux", reason="os.waitid with WNOWAIT")
def test_why_a_worker_ended_is_known_though_its_connection_is_lost_first(monkeypatch: pytest.MonkeyPatch):
    waitpid = os.waitpid

    def wait_late(pid: int, options: int) -> tuple[int, int]:
        if options == 0:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            time.sleep(0.3)
        return waitpid(pid, options)

    monkeypatch.setattr(os, "waitpid", wait_late)
    run(lambda: kill_before_it_listens(held_up_seconds=0.1))


@pytest.mark.skipif(sys.platform != "linux", reason="counts processes in /proc")
def test_a_worker_that_cannot_start_is_an_error_and_leaves_nothing(tmp_path: Path):
    async def test() -> None:
        flags = WorkerFlags(tmp_path / "missing", "demo", "info")
        pool = WorkerPool("127.0.0.1:0", 2, flags, lambda command: None)
        with pytest.raises(ValueError, match=r"--api-workers: worker [01] could not start"):
            await pool.start()
        assert not pool.processes

    run(test)
