"""An executor that answers with garbage: its session ends, and no client ever sees any of it."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from scheduler_harness import LIMITS, MODEL, Executor, Service, run

from executor_svc.session import Session
from nanoserve.arrays import pack_int32, unpack_int32
from nanoserve.executor.v1 import executor_pb2 as pb

Corruption = Callable[[pb.StepResult], list[pb.StepResult]]
_BAD_RESULT = 20


def changed(**fields: object) -> Corruption:
    """The result with other values in these fields."""

    def corrupt(result: pb.StepResult) -> list[pb.StepResult]:
        for name, value in fields.items():
            setattr(result, name, value)
        return [result]

    return corrupt


def with_ids(name: str, change: Callable[[list[int]], list[int]]) -> Corruption:
    """The result with another list of integers in a field."""
    return lambda result: changed(**{name: pack_int32(change(unpack_int32(getattr(result, name)).tolist()))})(
        result
    )


def with_columns(change: Callable[[list[int]], list[int]]) -> Corruption:
    """The result with the rows and the tokens changed alike."""
    return lambda result: with_ids("token_ids", change)(with_ids("rows", change)(result)[0])


def twice(result: pb.StepResult) -> list[pb.StepResult]:
    return [result, result]


def and_one_of_a_plan_never_sent(result: pb.StepResult) -> list[pb.StepResult]:
    more = pb.StepResult()
    more.CopyFrom(result)
    more.step_id += 100
    return [result, more]


CORRUPTIONS: dict[str, Corruption] = {
    "an earlier step": lambda result: changed(step_id=result.step_id - 1)(result),
    "a later step": lambda result: changed(step_id=result.step_id + 1)(result),
    "another sub-step": changed(sub_step=1),
    "more to come": changed(last=False),
    "a row too few": with_columns(lambda ids: ids[:-1]),
    "a row too many": with_columns(lambda ids: [*ids, 7]),
    "no rows": with_columns(lambda ids: []),
    "rows in another order": with_ids("rows", lambda rows: rows[::-1]),
    "a row twice": with_ids("rows", lambda rows: [rows[0]] * len(rows)),
    "a row that there is not": with_ids("rows", lambda rows: [*rows[:-1], 2**31 - 1]),
    "a token beyond the vocabulary": with_ids("token_ids", lambda ids: [*ids[:-1], LIMITS.vocab_size]),
    "a negative token": with_ids("token_ids", lambda ids: [-1, *ids[1:]]),
    "more tokens than rows": with_ids("token_ids", lambda ids: [*ids, 5]),
    "half a token": lambda result: changed(token_ids=result.token_ids[:-1])(result),
    "fewer statuses than rows": changed(row_statuses=pack_int32([1])),
    "an unknown status": changed(status=77),
    "no status": changed(status=pb.STEP_STATUS_UNSPECIFIED),
    "nothing": lambda result: [pb.StepResult()],
    "the same again": twice,
    "an answer to nothing": and_one_of_a_plan_never_sent,
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_garbage_costs_a_session_and_no_client_sees_any(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    results, num_results = Session.results, 0

    def rogue_results(session: Session) -> Iterator[pb.StepResult]:
        nonlocal num_results
        for result in results(session):
            num_results += 1
            yield from CORRUPTIONS[name](result) if num_results == _BAD_RESULT else [result]

    monkeypatch.setattr(Session, "results", rogue_results)

    async def test() -> None:
        executor = Executor(f"unix:{tmp_path}/executor", limits=replace(LIMITS, num_blocks=257))
        executor.start()
        async with Service(tmp_path, executor=executor) as service:
            await service.serving()
            calls = [service.generate([i, 2, 3], seed=i, max_tokens=60) for i in range(4)]
            for i, answer in enumerate(await asyncio.gather(*calls)):
                assert answer.token_ids[0] == [MODEL.token(i, 3 + k) for k in range(60)]
            assert (await service.until_idle()).executor_epoch == 2

    run(test)
