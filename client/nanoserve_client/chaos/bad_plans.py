"""Plans that break the executor's contract, each with the field that the executor must name."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nanoserve.arrays import pack_int32
from nanoserve.executor.v1 import executor_pb2 as pb

_FAR = 2**30


@dataclass(frozen=True, slots=True)
class BadPlan:
    """A plan for a session whose rows are all clear, and a word that the refusal's `field` must hold."""

    plan: pb.StepPlan
    field: str


def _start(row: int, blocks: list[int], num_tokens: int = 4) -> pb.StartRow:
    return pb.StartRow(
        row=row,
        token_ids=pack_int32(list(range(1, num_tokens + 1))),
        num_prompt_tokens=num_tokens,
        block_table=pack_int32(blocks),
    )


def _prefill(row: int, first_position: int = 0, num_tokens: int = 4) -> pb.Prefill:
    return pb.Prefill(row=row, first_position=first_position, num_tokens=num_tokens, samples=True)


def _started(**fields: Any) -> pb.StepPlan:
    """A plan that starts row 0 on block 1, good but for `fields`."""
    plan = pb.StepPlan(step_id=1, starts=[_start(0, [1])], prefills=[_prefill(0)])
    plan.MergeFrom(pb.StepPlan(**fields))
    return plan


def _with_start(change: Callable[[pb.StartRow], None]) -> pb.StepPlan:
    plan = _started()
    change(plan.starts[0])
    return plan


def _set(name: str, value: object) -> Callable[[pb.StartRow], None]:
    return lambda start: setattr(start, name, value)


def _hot(start: pb.StartRow) -> None:
    start.sampling.temperature = float("nan")


_MAKERS: tuple[Callable[[], BadPlan], ...] = (
    lambda: BadPlan(pb.StepPlan(step_id=0), "step_id"),
    lambda: BadPlan(pb.StepPlan(step_id=1, decode_rows=pack_int32([0])), "decode_rows"),
    lambda: BadPlan(pb.StepPlan(step_id=1, decode_rows=pack_int32([-1])), "decode_rows"),
    lambda: BadPlan(pb.StepPlan(step_id=1, decode_rows=b"\x00\x00\x00"), "decode_rows"),
    lambda: BadPlan(pb.StepPlan(step_id=1, release_rows=pack_int32([3])), "release_rows"),
    lambda: BadPlan(
        pb.StepPlan(step_id=1, starts=[_start(_FAR, [1])], prefills=[_prefill(_FAR)]), "starts[0].row"
    ),
    lambda: BadPlan(_with_start(_set("block_table", pack_int32([0]))), "block_table"),
    lambda: BadPlan(_with_start(_set("block_table", pack_int32([_FAR]))), "block_table"),
    lambda: BadPlan(_with_start(_set("block_table", b"")), ""),
    lambda: BadPlan(_with_start(_set("token_ids", pack_int32([1, 2, 3, _FAR]))), "token_ids"),
    lambda: BadPlan(_with_start(_set("token_ids", pack_int32([1, 2, 3, -5]))), "token_ids"),
    lambda: BadPlan(_with_start(_set("num_prompt_tokens", 5)), "num_prompt_tokens"),
    lambda: BadPlan(_with_start(_set("num_computed_tokens", 4)), "num_computed_tokens"),
    lambda: BadPlan(_with_start(_hot), "temperature"),
    lambda: BadPlan(_started(prefills=[_prefill(1)]), "prefills[1]"),
    lambda: BadPlan(
        pb.StepPlan(step_id=1, starts=[_start(0, [1])], prefills=[_prefill(0, 2, 2)]), "prefills[0]"
    ),
    lambda: BadPlan(
        pb.StepPlan(step_id=1, starts=[_start(0, [1])], prefills=[_prefill(0, 0, _FAR)]), "prefills"
    ),
    lambda: BadPlan(
        pb.StepPlan(step_id=1, starts=[_start(0, [1]), _start(1, [1])], prefills=[_prefill(0), _prefill(1)]),
        "",
    ),
    lambda: BadPlan(_started(num_decode_steps=_FAR), "num_decode_steps"),
    lambda: BadPlan(_started(masks=[pb.RowMask(row=5, allowed_ids=pack_int32([1]))]), "masks"),
    lambda: BadPlan(_started(new_block_rows=pack_int32([0]), new_block_ids=pack_int32([1])), "new_block"),
    lambda: BadPlan(_started(new_block_rows=pack_int32([0])), "new_block"),
)


def draw_bad_plan(draw: random.Random) -> BadPlan:
    """One of them."""
    return draw.choice(_MAKERS)()


def all_bad_plans() -> list[BadPlan]:
    """Each of them."""
    return [make() for make in _MAKERS]
