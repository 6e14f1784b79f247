"""A planned change of executors drops and repeats nothing; one that cannot be made disturbs nobody."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from scheduler_harness import LIMITS, MODEL, Answer, Executor, Service, refused, run

from nanoserve.v1 import admin_pb2

PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


def executor(folder: Path, name: str, num_blocks: int = 513) -> Executor:
    made = Executor(f"unix:{folder}/{name}", limits=replace(LIMITS, num_blocks=num_blocks), step_ms=1.0)
    made.start()
    return made


@asynccontextmanager
async def streaming(
    folder: Path,
) -> AsyncIterator[tuple[Service, Executor, Executor, "asyncio.Task[Answer]"]]:
    """A service, its executor, another one, and a stream that is under way."""
    first, second = executor(folder, "first"), executor(folder, "second")
    async with Service(folder, executor=first) as service:
        await service.serving()
        call = asyncio.ensure_future(service.generate([0, 2, 3], seed=0, max_tokens=150))
        await service.until(lambda load: load.num_output_tokens >= 20)
        yield service, first, second, call
    await second.stop()


async def switch(service: Service, address: str) -> int:
    request = admin_pb2.SwitchExecutorRequest(executor=address)
    response: admin_pb2.SwitchExecutorResponse = await service.admin.SwitchExecutor(request, timeout=30)
    return response.epoch


def generations(service: Service, num_tokens: int = 150) -> list["asyncio.Task[object]"]:
    return [
        asyncio.ensure_future(
            service.generate([i, 2, 3], seed=i, max_tokens=num_tokens, n=1 + i % 2, logprobs=1)
        )
        for i in range(6)
    ]


def check(i: int, answer: object, num_tokens: int = 150) -> None:
    assert answer.token_ids[0] == [MODEL.token(i, 3 + k) for k in range(num_tokens)]  # type: ignore[attr-defined]
    assert answer.completed.usage.num_preemptions == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("api_workers", [0, 1])
def test_streams_go_on_over_any_number_of_changes(api_workers: int, tmp_path: Path):
    async def test() -> None:
        executors = [executor(tmp_path, f"executor-{number}") for number in range(2)]
        async with Service(tmp_path, executor=executors[0], api_workers=api_workers) as service:
            await service.serving()
            calls = generations(service)
            for number in (1, 0, 1):
                tokens = (await service.load()).num_output_tokens
                await service.until(lambda load, tokens=tokens: load.num_output_tokens >= tokens + 100)
                assert await switch(service, executors[number].address) >= 1
            await executors[0].stop()
            for i, answer in enumerate(await asyncio.gather(*calls)):
                check(i, answer)
            assert (await service.until_idle()).executor_healthy
        await executors[1].stop()

    run(test)


def test_a_change_that_cannot_be_made_is_refused_and_disturbs_nobody(tmp_path: Path):
    async def test() -> None:
        present = executor(tmp_path, "present")
        other_model = Executor(f"unix:{tmp_path}/other-model")
        other_model.model_fingerprint = "another"
        other_weights = Executor(f"unix:{tmp_path}/other-weights")
        other_weights.weights_fingerprint = "another"
        for one in (other_model, other_weights):
            one.start()
        small = executor(tmp_path, "small", num_blocks=17)
        taken = executor(tmp_path, "taken")
        async with (
            Service(tmp_path, executor=taken) as owner,
            Service(tmp_path, executor=present) as service,
        ):
            await owner.serving()
            await service.serving()
            calls = generations(service)
            await service.until(lambda load: load.num_output_tokens >= 50)
            for address in (
                present.address,
                other_model.address,
                other_weights.address,
                small.address,
                taken.address,
                f"unix:{tmp_path}/nobody",
            ):
                with refused(PRECONDITION, "executor"):
                    await switch(service, address)
            for i, answer in enumerate(await asyncio.gather(*calls)):
                check(i, answer)
            assert (await service.load()).executor_epoch == 1
        for one in (other_model, other_weights, small):
            await one.stop()

    run(test)


def test_a_second_change_meanwhile_is_refused(tmp_path: Path):
    async def test() -> None:
        first, second = executor(tmp_path, "first"), executor(tmp_path, "second")
        async with Service(tmp_path, executor=first) as service:
            await service.serving()
            both = [switch(service, second.address) for _ in range(2)]
            outcomes = await asyncio.gather(*both, return_exceptions=True)
            (failure,) = [outcome for outcome in outcomes if outcome != 1]
            assert isinstance(failure, grpc.aio.AioRpcError)
            assert failure.code() is PRECONDITION
        await second.stop()

    run(test)


def test_an_executor_that_is_away_can_be_changed_for_another(tmp_path: Path):
    async def test() -> None:
        async with streaming(tmp_path) as (service, first, second, call):
            await first.stop()
            await service.until(lambda load: not load.executor_healthy)
            await switch(service, second.address)
            check(0, await call)
            await second.stop()
            second.start()
            check(0, await service.generate([0, 2, 3], seed=0, max_tokens=150))

    run(test)


def test_a_successor_that_ends_as_it_is_handed_over_to_costs_a_pause(tmp_path: Path):
    async def test() -> None:
        async with streaming(tmp_path) as (service, _, second, call):
            await asyncio.gather(switch(service, second.address), second.stop(), return_exceptions=True)
            second.start()
            check(0, await call)

    run(test)
