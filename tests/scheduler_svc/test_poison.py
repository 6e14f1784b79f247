"""A request that makes every executor fail, by its word or by silence, ends; all others get what they get alone."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from scheduler_harness import LIMITS, MODEL, Executor, Service, refused, run

from executor_svc.plan import ErrorCode, Step, StepFailure, SubStepOutput
from executor_svc.virtual import VirtualRunner

POISON = 666
_HANG_SECONDS = 1.0


class FailingRunner(VirtualRunner):
    """Fails each step that computes a sequence whose prompt begins with the poison; it names no row."""

    poisoned: frozenset[int] = frozenset()

    def finish(self, step: Step, sub_step: int, end_ns: int) -> SubStepOutput:
        plan = step.plan
        gone, came = set(plan.release_rows.tolist()), {s.row for s in plan.starts if s.token_ids[0] == POISON}
        self.poisoned = (self.poisoned - gone - {start.row for start in plan.starts}) | came
        computed = {prefill.row for prefill in plan.prefills} | set(plan.decode_rows.tolist())
        if self.poisoned & computed:
            self.fail()
        return super().finish(step, sub_step, end_ns)

    def fail(self) -> None:
        raise StepFailure(ErrorCode.INTERNAL, "no rows known")

    def reset(self) -> None:
        super().reset()
        self.poisoned = frozenset()


class HangingRunner(FailingRunner):
    """Says nothing, for so long that it is given up."""

    def fail(self) -> None:
        time.sleep(_HANG_SECONDS)
        super().fail()


class OnceSilentRunner(VirtualRunner):
    """Its first step hangs."""

    _is_warm = False

    def finish(self, step: Step, sub_step: int, end_ns: int) -> SubStepOutput:
        if not self._is_warm:
            self._is_warm = True
            time.sleep(_HANG_SECONDS)
        return super().finish(step, sub_step, end_ns)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanoserve.step_limits._MIN_SECONDS", 0.4)
    monkeypatch.setattr("nanoserve.step_limits.TICK_SECONDS", 0.05)
    monkeypatch.setattr("scheduler_svc.engine.TICK_SECONDS", 0.05)
    monkeypatch.setattr("scheduler_svc.failures._MAX_DOUBLINGS", 0)


@pytest.mark.parametrize("runner", [FailingRunner, HangingRunner])
def test_a_poisonous_request_ends_and_all_others_get_their_tokens(
    runner: type[VirtualRunner], tmp_path: Path
):
    async def test() -> None:
        executor = Executor(f"unix:{tmp_path}/executor", limits=replace(LIMITS, num_blocks=257), step_ms=1.0)
        executor.runner = runner
        executor.start()
        async with Service(tmp_path, executor=executor) as service:
            await service.serving()
            wanted = [{"seed": i, "max_tokens": 60, "n": 1 + i % 2, "logprobs": 0} for i in range(4)]
            others = [
                asyncio.ensure_future(service.generate([i, 2, 3], **fields))
                for i, fields in enumerate(wanted)
            ]
            await service.until(lambda load: load.num_output_tokens >= 20)
            with refused(grpc.StatusCode.INTERNAL) as failure:
                await service.generate([POISON, 1], max_tokens=5, n=2)
            assert "internal error" in str(failure.value.details())
            for i, answer in enumerate(await asyncio.gather(*others)):
                alone = await service.generate([i, 2, 3], **wanted[i])
                assert alone.token_ids[0] == [MODEL.token(i, 3 + k) for k in range(60)]
                assert answer.token_ids == alone.token_ids
                assert answer.logprobs == alone.logprobs
                assert answer.completed.usage.num_preemptions == 0
            load = await service.until_idle()
            assert load.executor_epoch <= 12

    run(test)


def test_an_executor_that_says_nothing_is_not_waited_for(tmp_path: Path):
    async def test() -> None:
        executor = Executor(f"unix:{tmp_path}/executor")
        executor.runner = OnceSilentRunner
        executor.start()
        async with Service(tmp_path, executor=executor) as service:
            await service.serving()
            call = asyncio.ensure_future(service.generate([1], seed=1, max_tokens=3))
            await service.until(lambda load: load.executor_epoch == 2)
            assert (await call).token_ids[0] == [MODEL.token(1, 1 + k) for k in range(3)]

    run(test)


def test_time_in_which_the_scheduler_itself_was_held_up_does_not_count(tmp_path: Path):
    async def test() -> None:
        executor = Executor(f"unix:{tmp_path}/executor", limits=LIMITS, step_ms=1000.0)
        executor.start()
        async with Service(tmp_path, executor=executor) as service:
            await service.serving()
            call = asyncio.ensure_future(service.generate([1], seed=1, max_tokens=1))
            await service.until(lambda load: load.num_plans_in_flight > 0)
            await asyncio.sleep(0.12)  # the step has been seen under way
            time.sleep(0.8)  # noqa: ASYNC251 (that is the point)
            assert len((await call).token_ids[0]) == 1
            assert (await service.load()).executor_epoch == 1

    run(test)
