"""Load, drain, health, reflection; and what is in the process."""

import asyncio
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from scheduler_harness import Executor, Service, refused, run

from nanoserve.v1 import admin_pb2
from nanoserve.v1 import inference_pb2 as pb
from scheduler_svc.api_server import READ_OUT_SECONDS

SERVICES = ["nanoserve.v1.InferenceService", "nanoserve.v1.AdminService"]
STATUS = health_pb2.HealthCheckResponse


async def statuses(service: Service) -> set[int]:
    async with grpc.aio.insecure_channel(service.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        requests = [health_pb2.HealthCheckRequest(service=name) for name in ("", *SERVICES)]
        return {(await stub.Check(request)).status for request in requests}


@pytest.mark.parametrize("api_workers", [0, 2])
def test_health_is_serving_from_the_first_session_until_the_drain(tmp_path: Path, api_workers: int):
    async def test() -> None:
        executor = Executor(f"unix:{tmp_path}/ex")
        async with Service(tmp_path, api_workers=api_workers, executor=executor) as service:
            assert await statuses(service) == {STATUS.NOT_SERVING}
            executor.start()
            await service.serving()
            assert await statuses(service) == {STATUS.SERVING}
            await service.admin.Drain(admin_pb2.DrainRequest())
            assert await statuses(service) == {STATUS.NOT_SERVING}

    run(test)


@pytest.mark.skipif(
    not hasattr(health_pb2, "HealthListResponse"), reason="grpcio-health-checking is older than 1.85"
)
def test_health_lists_all_services(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service, grpc.aio.insecure_channel(service.address) as channel:
            await service.serving()
            answer = await health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest())
            assert {name: one.status for name, one in answer.statuses.items()} == dict.fromkeys(
                ["", *SERVICES], STATUS.SERVING
            )

    run(test)


@pytest.mark.parametrize("api_workers", [0, 1])
def test_those_who_watch_health_are_told_of_the_end_and_do_not_delay_it(tmp_path: Path, api_workers: int):
    async def test() -> None:
        service = Service(tmp_path, api_workers=api_workers)
        async with service, grpc.aio.insecure_channel(service.address) as channel:
            await service.serving()
            stub = health_pb2_grpc.HealthStub(channel)
            left, *watches = [
                stub.Watch(health_pb2.HealthCheckRequest(service=SERVICES[0])) for _ in range(3)
            ]
            for watch in (left, *watches):
                assert (await watch.read()).status == STATUS.SERVING
            left.cancel()
            loop = asyncio.get_running_loop()
            began = loop.time()
            await service.server.stop()
            assert loop.time() - began < READ_OUT_SECONDS - 1
            for watch in watches:
                assert (await watch.read()).status == STATUS.NOT_SERVING
                assert await watch.read() is grpc.aio.EOF

    run(test)


def test_an_unknown_services_health_is_not_found(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service, grpc.aio.insecure_channel(service.address) as channel:
            stub, request = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckRequest(service="x")
            with refused(grpc.StatusCode.NOT_FOUND):
                await stub.Check(request)
            assert (await stub.Watch(request).read()).status == STATUS.SERVICE_UNKNOWN

    run(test)


@pytest.mark.parametrize("api_workers", [0, 1])
def test_a_bug_in_the_api_ends_the_scheduler_with_a_failure(
    tmp_path: Path, api_workers: int, capfd: pytest.CaptureFixture[str]
):
    async def test() -> None:
        async with Service(tmp_path, api_workers=api_workers) as service:
            await service.serving()
            ended = asyncio.ensure_future(service.exit())
            await asyncio.sleep(0)
            service.server.api.receive(object())  # type: ignore[arg-type]
            exit_ = await ended
            assert exit_.is_failure
            logged = capfd.readouterr()
            assert exit_.reason.split()[-1] in logged.out + logged.err

    run(test)


def test_reflection_lists_the_services(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service, grpc.aio.insecure_channel(service.address) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            async for response in stub.ServerReflectionInfo(iter([request])):
                names = {entry.name for entry in response.list_services_response.service}
                assert names >= {*SERVICES, "grpc.health.v1.Health"}

    run(test)


@pytest.mark.parametrize("api_workers", [0, 2])
def test_a_drain_refuses_new_requests_and_waits_for_running_ones(tmp_path: Path, api_workers: int):
    async def test() -> None:
        async with Service(tmp_path, api_workers=api_workers) as service:
            await service.serving()
            running = asyncio.ensure_future(service.generate([1], max_tokens=200))
            await service.until(lambda load: load.num_running_requests == 1)
            draining = asyncio.ensure_future(service.admin.Drain(admin_pb2.DrainRequest()).__await__())
            await service.until(lambda load: load.draining)
            with refused(grpc.StatusCode.UNAVAILABLE):
                await service.generate([1])
            assert (await draining).num_aborted_requests == 0
            assert len((await running).token_ids[0]) == 200

    run(test)


@pytest.mark.parametrize("api_workers", [0, 2])
def test_a_drain_whose_time_is_up_ends_what_is_left(tmp_path: Path, api_workers: int):
    async def test() -> None:
        executor = Executor(f"unix:{tmp_path}/ex", step_ms=20)
        executor.start()
        async with Service(tmp_path, api_workers=api_workers, executor=executor) as service:
            await service.serving()
            calls = [asyncio.ensure_future(service.generate([i], max_tokens=200)) for i in range(12)]
            await service.until(lambda load: load.num_running_requests + load.num_waiting_requests == 12)
            drained = await service.admin.Drain(admin_pb2.DrainRequest(timeout_seconds=0.2))
            assert drained.num_aborted_requests == 12
            for answer in await asyncio.gather(*calls):
                assert answer.finished[0].finish_reason == pb.FINISH_REASON_ABORTED
                assert answer.completed.usage.num_output_tokens == len(answer.token_ids.get(0, []))
            await service.until_idle()

    run(test)


@pytest.mark.parametrize("api_workers", [0, 2])
def test_the_load_is_streamed_at_the_interval_asked_for(tmp_path: Path, api_workers: int):
    async def test() -> None:
        async with Service(tmp_path, api_workers=api_workers) as service:
            await service.serving()
            call = service.admin.WatchLoad(admin_pb2.WatchLoadRequest(interval_seconds=0.05))
            assert not (await call.read()).load.HasField("step_stats")
            await service.generate([1], max_tokens=3)
            while not (await call.read()).load.num_steps:
                pass
            load = (await call.read()).load
            assert load.step_stats.device_ms > 0
            assert load.step_stats.schedule_ms > 0
            # With so few steps the means are over all of them.
            for name in ("device", "host", "queue", "idle", "round_trip", "schedule"):
                total_ms = getattr(load.step_totals, f"{name}_seconds") * 1e3
                assert total_ms / load.num_steps == pytest.approx(getattr(load.step_stats, f"{name}_ms"))
            call.cancel()

    run(test)


def test_a_server_that_stops_ends_the_calls_that_wait(tmp_path: Path):
    async def test() -> None:
        service = Service(tmp_path, executor=Executor(f"unix:{tmp_path}/ex", step_ms=50))
        service.executor.start()
        async with service:
            await service.serving()
            watch = service.admin.WatchLoad(admin_pb2.WatchLoadRequest(interval_seconds=3600))
            await watch.read()
            call = asyncio.ensure_future(service.generate([1], max_tokens=200))
            await service.until(lambda load: load.num_running_requests == 1)
            drain = service.admin.Drain(admin_pb2.DrainRequest())
            await service.until(lambda load: load.draining)
            service.server.api.frontend.close()
            for waiting in (watch.read(), drain, service.load()):
                with refused(grpc.StatusCode.UNAVAILABLE):
                    await waiting
            call.cancel()

    run(test)


def test_a_disabled_prefix_cache_finds_nothing(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path, enable_prefix_caching=False) as service:
            await service.serving()
            for _ in range(2):
                answer = await service.generate([1] * 40, max_tokens=2)
                assert answer.started.num_cached_tokens == 0
            load = await service.until_idle()
            assert load.num_cached_blocks == 0

    run(test)


def test_the_load_counts_what_a_static_batch_pads(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path, batching="static", pipeline_depth=1, max_plan_ms=0) as service:
            await service.serving()
            first = asyncio.create_task(service.generate([1] * 4, max_tokens=60))
            await service.until(lambda load: load.num_running_requests == 1)
            both = [asyncio.create_task(service.generate([1] * 4, max_tokens=count)) for count in (20, 5)]
            await service.until(lambda load: load.num_waiting_requests == 2)
            await asyncio.gather(first, *both)
            load = await service.until_idle()
            assert (load.num_padded_tokens, load.num_output_tokens) == (20 - 5, 60 + 20 + 5)

    run(test)


def test_the_load_counts_the_slots_that_contiguous_allocation_leaves_unused(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path, kv_allocation="contiguous") as service:
            await service.serving()
            answer = asyncio.create_task(service.generate([1] * 4, max_tokens=60))
            load = await service.until(lambda load: load.num_held_blocks > 0)
            # The blocks of the longest sequence, 256 tokens, less those that are computed or planned.
            assert 256 - 4 - 60 < load.num_unused_slots <= 256
            await answer
            assert (await service.until_idle()).num_unused_slots == 0

    run(test)


def test_without_chunks_a_prompt_larger_than_a_step_is_refused(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path, enable_chunked_prefill=False) as service:
            await service.serving()
            with refused(grpc.StatusCode.INVALID_ARGUMENT, "prompt"):
                await service.generate([1] * 40, max_tokens=2)
            await service.generate([1] * 20, max_tokens=2)

    run(test)


def test_no_torch_in_the_process():
    code = (
        "import sys, scheduler_svc.__main__ as main\n"
        "from nanoserve.checkpoint import demo_checkpoint\n"
        "from scheduler_svc.config import SchedulerConfig\n"
        "from scheduler_svc.model import load_model\n"
        "import asyncio\n"
        "async def make(): main.SchedulerServer(SchedulerConfig(), load_model(demo_checkpoint(), 'demo'))\n"
        "asyncio.run(make())\n"
        "heavy = {'torch', 'transformers', 'safetensors', 'executor_svc'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("address", ["unix:/no/such/folder/socket", "unix:/dev/null", "256.0.0.1:99"])
def test_an_address_that_cannot_be_had_is_told_by_its_flag(address: str, tmp_path: Path):
    async def test() -> None:
        with pytest.raises(ValueError, match="--listen"):
            async with Service(tmp_path, listen=address, insecure=True):
                pass

    run(test)


def test_a_living_servers_socket_is_left_alone(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service:
            with pytest.raises(ValueError, match="in use"):
                async with Service(tmp_path, executor=service.executor, listen=service.address):
                    pass
            await service.serving()
            await service.generate([1], max_tokens=1)

    run(test)
