"""The frontend alone: what it does with events that have come and were not taken yet."""

import asyncio

import pytest

from scheduler_svc import messages as msg
from scheduler_svc.errors import ServiceError
from scheduler_svc.frontend import Frontend


def test_answers_that_came_before_the_end_are_given():
    async def test() -> None:
        sent: list[msg.Command] = []
        frontend = Frontend(sent.append, lambda serving: None)
        answered, unanswered = (asyncio.ensure_future(frontend.drain(None)) for _ in range(2))
        await asyncio.sleep(0)
        first, _ = sent
        assert isinstance(first, msg.Drain)
        frontend.receive(msg.Drained(first.key, 3))
        frontend.close()
        assert await answered == 3
        with pytest.raises(ServiceError, match="stopping"):
            await unanswered

    asyncio.run(test())
