"""A heartbeat alone: pings, answers, and silence."""

import asyncio

from scheduler_svc.heartbeat import MAX_UNANSWERED, MAX_UNANSWERED_AT_START, Heartbeat


def num_pings_until_silence(num_answered: int) -> int:
    """Pings sent to a worker that answers so many and then no more."""
    sent = []

    def ping() -> None:
        sent.append(None)
        if len(sent) <= num_answered:
            heartbeat.heard()

    heartbeat = Heartbeat(ping, ping_seconds=0.0)
    assert "pings" in asyncio.run(heartbeat.silence())
    return len(sent)


def test_a_worker_is_given_up_after_so_many_pings_without_an_answer_and_never_before():
    for num_answered in (1, 2, MAX_UNANSWERED, 500):
        assert num_pings_until_silence(num_answered) == num_answered + MAX_UNANSWERED


def test_a_worker_that_has_said_nothing_yet_is_given_more():
    assert num_pings_until_silence(0) == MAX_UNANSWERED_AT_START > MAX_UNANSWERED


def test_an_answer_counts_for_all_the_pings_before_it():
    async def test() -> None:
        sent = []

        def ping() -> None:
            sent.append(None)
            if len(sent) % (MAX_UNANSWERED - 1) == 0:
                heartbeat.heard()

        heartbeat = Heartbeat(ping, ping_seconds=0.0)
        heartbeat.heard()
        silence = asyncio.ensure_future(heartbeat.silence())
        while len(sent) < 50 * MAX_UNANSWERED:  # noqa: ASYNC110 (nobody tells of it)
            await asyncio.sleep(0)
        assert not silence.done()
        silence.cancel()

    asyncio.run(test())
