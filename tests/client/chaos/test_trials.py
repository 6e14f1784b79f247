"""What trials conclude from what they measured."""

import asyncio
import math
import os
import sys

import pytest

from nanoserve_client.chaos import report, resources
from nanoserve_client.chaos.process_table import descendants
from nanoserve_client.chaos.stack import ServiceLog, Stack, StackFlags
from nanoserve_client.chaos.trials import TrialResult, beside, on_stack
from nanoserve_client.errors import ServerStartError


def test_growth_is_from_the_first_quarter_to_the_last_whatever_happens_between():
    assert resources.growth([10] * 4 + [90] * 8 + [10] * 4) == 0
    assert resources.growth([10] * 4 + [0] * 8 + [13] * 4) == 3
    assert resources.growth([5]) == 0
    assert resources.relative_growth([100, 100, 100, 100, 107, 107, 107, 107]) == pytest.approx(0.07)


def test_one_odd_reading_is_no_growth():
    assert resources.growth([10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 500, 10]) == 0


def test_a_percentile_is_one_of_the_values():
    values = [5.0, 1.0, 3.0, 2.0, 4.0]
    assert [report.percentile(values, share) for share in (0.2, 0.5, 0.99, 1.0)] == [1.0, 3.0, 5.0, 5.0]
    assert math.isnan(report.percentile([], 0.5))
    assert report.rounded(math.nan) is None


def test_work_beside_a_body_ends_with_it_and_its_failure_is_no_secret():
    done: list[str] = []

    async def go_on(ends_with: Exception | None) -> None:
        try:
            await asyncio.sleep(0 if ends_with else 600)
            if ends_with:
                raise ends_with
        finally:
            done.append("ended")

    async def run(ends_with: Exception | None) -> None:
        async with beside(go_on(ends_with)):
            await asyncio.sleep(0.01)
            done.append("body")

    asyncio.run(run(None))
    with pytest.raises(ValueError, match="no process"):
        asyncio.run(run(ValueError("no process")))
    assert done == ["body", "ended", "ended", "body"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_services_that_do_not_start_are_ended():
    async def no_play(stack: Stack) -> TrialResult:
        raise AssertionError("it has started")

    async def run() -> None:
        before = set(descendants(os.getpid()))
        with pytest.raises(ServerStartError, match="executor"):
            await on_stack(StackFlags(executor=["--no-such-flag"]), ServiceLog(), no_play)
        for _ in range(1000):
            if before.issuperset(descendants(os.getpid())):
                return
            await asyncio.sleep(0.01)
        raise AssertionError("processes are left")

    asyncio.run(run())


def test_only_what_does_not_hold_is_a_problem():
    result = TrialResult()
    result.require(True, "fine")
    result.require(False, "not fine")
    assert result.problems == ["not fine"]
