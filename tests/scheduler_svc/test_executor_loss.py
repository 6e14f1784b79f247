"""The executor fails, goes away and comes back; another scheduler takes it."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from scheduler_harness import (
    LIMITS,
    MODEL,
    Answer,
    Executor,
    Service,
    generate_request,
    refused,
    retry_seconds,
    run,
)

from executor_svc.plan import ErrorCode, StepFailure
from executor_svc.runner import RunnerLimits
from executor_svc.virtual import RunnerHooks

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
INTERNAL = grpc.StatusCode.INTERNAL


def expected(prompt: list[int], seed: int, num_tokens: int) -> list[int]:
    return [MODEL.token(seed, len(prompt) + i) for i in range(num_tokens)]


def failing(*failures: StepFailure | None) -> RunnerHooks:
    """Each step takes the next of these: it fails with it, or runs for None; all later ones run."""
    pending: Iterator[StepFailure | None] = iter(failures)

    def before_result(step_id: int) -> None:
        failure = next(pending, None)
        if failure is not None:
            raise failure

    return RunnerHooks(before_result=before_result)


def start_executor(folder: Path, hooks: RunnerHooks | None = None, limits: RunnerLimits = LIMITS) -> Executor:
    executor = Executor(f"unix:{folder}/executor", limits=limits, step_ms=1.0)
    executor.hooks = hooks or RunnerHooks()
    executor.start()
    return executor


async def running(service: Service, **fields: int) -> "asyncio.Task[Answer]":
    """A generation of 200 tokens that the executor has begun."""
    await service.serving()
    call = asyncio.ensure_future(service.generate([1], max_tokens=200, **fields))
    await service.until(lambda load: load.num_running_requests == 1)
    return call


def test_streams_go_on_where_they_were_when_the_executor_comes_back(tmp_path: Path):
    async def test() -> None:
        executor = start_executor(tmp_path, limits=replace(LIMITS, num_blocks=257))
        async with Service(tmp_path, executor=executor) as service:
            await service.serving()
            calls = [
                asyncio.ensure_future(service.generate([i, 2, 3], seed=i, max_tokens=150)) for i in range(6)
            ]
            for target in (60, 200):
                await service.until(lambda load, target=target: load.num_output_tokens >= target)
                await executor.stop()
                await service.until(lambda load: not load.executor_healthy)
                executor.start()
                await service.until(lambda load: load.executor_healthy)
            for i, answer in enumerate(await asyncio.gather(*calls)):
                assert answer.token_ids[0] == expected([i, 2, 3], i, 150)
                # Starting again after a loss is no preemption.
                assert answer.completed.usage.num_preemptions == 0
            await service.until_idle()

    run(test)


def test_requests_that_come_while_the_executor_is_away_wait_for_it(tmp_path: Path):
    async def test() -> None:
        executor = start_executor(tmp_path)
        async with Service(tmp_path, executor=executor) as service:
            await service.serving()
            await executor.stop()
            await service.until(lambda load: not load.executor_healthy)
            call = asyncio.ensure_future(service.generate([1, 2], seed=4, max_tokens=9))
            await service.until(lambda load: load.num_waiting_requests == 1)
            executor.start()
            assert (await call).token_ids[0] == expected([1, 2], 4, 9)

    run(test)


def test_an_executor_that_warms_up_is_waited_for_as_long_as_it_does(tmp_path: Path):
    async def test() -> None:
        executor = Executor(f"unix:{tmp_path}/executor")
        executor.warm_up()
        async with Service(tmp_path, executor=executor, executor_loss_timeout=0.5) as service:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(service.server.wait(), 1.5)
            with refused(UNAVAILABLE):
                await service.generate([1])
            executor.start()
            await service.serving()
            assert len((await service.generate([1], max_tokens=5)).token_ids[0]) == 5

    run(test)


def test_after_a_grace_no_more_requests_are_accepted_and_those_that_were_go_on_when_it_is_back(
    tmp_path: Path,
):
    async def test() -> None:
        executor = start_executor(tmp_path)
        async with Service(tmp_path, executor=executor, executor_loss_grace=0.3) as service:
            call = await running(service, seed=3)
            await executor.stop()
            waiting = asyncio.ensure_future(service.generate([2], seed=4, max_tokens=5))
            async with asyncio.timeout(10):
                while service.server.api.frontend.state.serving:  # noqa: ASYNC110 (nobody tells of it)
                    await asyncio.sleep(0.01)
            with refused(UNAVAILABLE) as failure:
                await service.generate([1])
            assert failure.value.details() == "there is no executor"
            assert 0 < retry_seconds(failure.value) <= 30
            executor.start()
            assert (await call).token_ids[0] == expected([1], 3, 200)
            assert (await waiting).token_ids[0] == expected([2], 4, 5)
            assert service.server.api.frontend.state.serving

    run(test)


def test_deadlines_and_the_queues_limit_hold_while_the_executor_is_away(tmp_path: Path):
    async def test() -> None:
        executor = start_executor(tmp_path)
        async with Service(tmp_path, executor=executor, max_queue_size=2) as service:
            call = await running(service, seed=3)
            await executor.stop()
            await service.until(lambda load: not load.executor_healthy)
            waiting = asyncio.ensure_future(service.generate([2], seed=4, max_tokens=5))
            hurried = service.stub.Generate(generate_request([3], max_tokens=5), timeout=0.5)
            await service.until(lambda load: load.num_waiting_requests == 2)
            with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
                await service.generate([4], max_tokens=5)
            with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
                await hurried.read()
            await service.until(lambda load: load.num_waiting_requests == 1)
            executor.start()
            assert (await call).token_ids[0] == expected([1], 3, 200)
            assert (await waiting).token_ids[0] == expected([2], 4, 5)
            await service.until_idle()

    run(test)


def test_an_executor_away_for_too_long_ends_what_waits_for_it_and_comes_back_to_serve(tmp_path: Path):
    async def test() -> None:
        executor = start_executor(tmp_path)
        async with Service(tmp_path, executor=executor, executor_loss_timeout=0.3) as service:
            call = await running(service)
            await executor.stop()
            with refused(UNAVAILABLE):
                await call
            with refused(UNAVAILABLE):
                await service.generate([1])
            assert not service.server.api.frontend.state.serving
            executor.start()
            async with asyncio.timeout(10):
                while not service.server.api.frontend.state.serving:  # noqa: ASYNC110 (nobody tells of it)
                    await asyncio.sleep(0.01)
            assert len((await service.generate([1], max_tokens=5)).token_ids[0]) == 5
            await service.until_idle()

    run(test)


def test_a_request_too_large_for_the_cache_that_came_back_ends(tmp_path: Path):
    async def test() -> None:
        executor = start_executor(tmp_path)
        async with Service(tmp_path, executor=executor) as service:
            await service.serving()
            small = asyncio.ensure_future(service.generate([1], seed=1, max_tokens=50))
            large = asyncio.ensure_future(service.generate([1], seed=2, max_tokens=200))
            await service.until(lambda load: load.num_output_tokens >= 20)
            await executor.stop()
            executor.limits = replace(LIMITS, num_blocks=17)
            executor.start()
            with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
                await large
            assert (await small).token_ids[0] == expected([1], 1, 50)
            with refused(grpc.StatusCode.INVALID_ARGUMENT, "stop.max_tokens"):
                await service.generate([1], max_tokens=200)

    run(test)


def test_a_failed_step_costs_nobody_anything_but_time(tmp_path: Path):
    async def test() -> None:
        failure = StepFailure(ErrorCode.RESOURCE_EXHAUSTED, "out of memory")
        executor = start_executor(tmp_path, failing(None, None, failure, None, failure, failure))
        async with Service(tmp_path, executor=executor) as service:
            await service.serving()
            answer = await service.generate([1, 2, 3], seed=9, max_tokens=60)
            assert answer.token_ids[0] == expected([1, 2, 3], 9, 60)
            assert (await service.until_idle()).executor_epoch == 4

    run(test)


def test_a_request_at_fault_ends_and_the_others_go_on(tmp_path: Path):
    async def test() -> None:
        # Row 0 is the first request's: it alone ends.
        failure = StepFailure(ErrorCode.INTERNAL, "row is broken", rows=(0,))
        executor = start_executor(tmp_path, failing(*[None] * 20, failure))
        async with Service(tmp_path, executor=executor) as service:
            await service.serving()
            first = asyncio.ensure_future(service.generate([1], seed=1, max_tokens=100, n=2))
            await service.until(lambda load: load.num_running_requests == 2)
            others = [
                asyncio.ensure_future(service.generate([1], seed=i, max_tokens=100)) for i in range(2, 5)
            ]
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await first
            assert failed.value.code() is INTERNAL
            assert (failed.value.details() or "").startswith("internal error ")
            for i, answer in enumerate(await asyncio.gather(*others), start=2):
                assert answer.token_ids[0] == expected([1], i, 100)
            await service.until_idle()

    run(test)


def test_after_a_step_that_found_data_loss_no_cached_prefix_is_hit(tmp_path: Path):
    async def test() -> None:
        for code, hits in [(ErrorCode.INTERNAL, 8), (ErrorCode.DATA_LOSS, 0)]:
            executor = start_executor(tmp_path, failing(None, StepFailure(code, "as the test wants it")))
            async with Service(tmp_path, executor=executor) as service:
                await service.serving()
                await service.generate([1] * 9, max_tokens=1)
                other = await service.generate([2] * 9, seed=5, max_tokens=3)
                assert other.token_ids[0] == expected([2] * 9, 5, 3)
                again = await service.generate([1] * 9, max_tokens=1)
                assert again.started.num_cached_tokens == hits
            await executor.stop()

    run(test)


def test_a_request_that_fails_every_step_ends_after_three(tmp_path: Path):
    async def test() -> None:
        failure = StepFailure(ErrorCode.INTERNAL, "no rows known")
        executor = start_executor(tmp_path, failing(failure, failure, failure))
        async with Service(tmp_path, executor=executor) as service:
            await service.serving()
            with refused(INTERNAL):
                await service.generate([1], max_tokens=10)
            assert len((await service.generate([1], max_tokens=10)).token_ids[0]) == 10
            await service.until_idle()

    run(test)


def test_a_scheduler_that_is_fenced_stops_for_good(tmp_path: Path):
    async def test() -> None:
        executor = start_executor(tmp_path)
        async with Service(tmp_path, executor=executor) as first:
            call = await running(first)
            async with Service(tmp_path, executor=executor, owns_executor=False, take_over=True) as second:
                await second.serving()
                with refused(UNAVAILABLE):
                    await call
                exit_ = await first.exit()
                assert not exit_.is_failure
                assert not first.server.api.frontend.state.serving
                assert len((await second.generate([1], max_tokens=5)).token_ids[0]) == 5
                assert (await second.load()).executor_epoch == 2

    run(test)


def test_a_second_scheduler_is_refused_and_the_first_is_not_disturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("scheduler_svc.link._HELD_SECONDS", 0.2)

    async def test() -> None:
        executor = start_executor(tmp_path)
        async with Service(tmp_path, executor=executor) as first:
            await first.serving()
            call = asyncio.ensure_future(first.generate([1], seed=2, max_tokens=200))
            async with Service(tmp_path, executor=executor, owns_executor=False) as second:
                exit_ = await second.exit()
                assert exit_.is_failure
                assert "--take-over" in exit_.reason
                assert "\n" not in exit_.reason
            assert (await call).token_ids[0] == expected([1], 2, 200)

    run(test)


@pytest.mark.parametrize("what", ["model_fingerprint", "weights_fingerprint"])
def test_an_executor_with_another_model_is_told_at_once(what: str, tmp_path: Path):
    async def test() -> None:
        executor = start_executor(tmp_path)
        async with Service(tmp_path, executor=executor) as service:
            call = await running(service)
            await executor.stop()
            setattr(executor, what, "another")
            executor.start()
            with refused(UNAVAILABLE):
                await call
            exit_ = await service.exit()
            assert exit_.is_failure
            assert what.replace("_", " ") in exit_.reason

    run(test)


def test_an_executor_that_is_never_there_is_told_after_the_timeout(tmp_path: Path):
    async def test() -> None:
        executor = Executor(f"unix:{tmp_path}/nobody")
        async with Service(tmp_path, executor=executor, executor_loss_timeout=0.3) as service:
            with refused(UNAVAILABLE):
                await service.generate([1])
            assert (await service.load()).num_total_blocks == 0
            exit_ = await service.exit()
            assert exit_.is_failure
            assert exit_.reason.startswith(f"--executor: {executor.address}")

    run(test)


def test_a_token_limit_below_the_executors_rows_is_told_by_its_flag(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path, max_num_batched_tokens=4) as service:
            exit_ = await service.exit()
            assert exit_.is_failure
            assert exit_.reason.startswith("--max-num-batched-tokens")

    run(test)
