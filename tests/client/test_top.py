"""What `nanoserve top` draws of readings that follow each other."""

from dataclasses import replace

import fake_server
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoserve_client.cli import main
from nanoserve_client.commands.top import View
from nanoserve_client.results import Load

IDLE = Load(
    num_running_requests=0,
    num_waiting_requests=0,
    num_total_blocks=100,
    num_free_blocks=100,
    num_cached_blocks=0,
    num_held_blocks=0,
    num_shared_blocks=0,
    num_preemptions=0,
    num_prefix_query_tokens=0,
    num_prefix_hit_tokens=0,
    num_steps=0,
    num_output_tokens=0,
    step_stats=None,
    executor_epoch=1,
    executor_healthy=True,
    draining=False,
    num_plans_in_flight=0,
)


def test_rates_are_those_between_two_readings() -> None:
    view = View("here:1", colours=False)
    assert "tokens/s          0" in view.frame(IDLE, 10.0)[2]
    later = replace(
        IDLE, num_output_tokens=3000, num_steps=50, num_running_requests=7, num_waiting_requests=2
    )
    lines = view.frame(later, 12.0)
    assert lines[0] == "nanoserve here:1   serving, session 1"
    assert "tokens/s      1,500" in lines[2]
    assert lines[2].endswith("█")
    assert "steps/s          25" in lines[3]
    assert "running           7   waiting 2" in lines[4]


def test_a_server_that_began_anew_has_no_rates_from_before() -> None:
    view = View("here:1", colours=False)
    for now, num_tokens in enumerate((0, 100, 90_000, 10, 110)):
        lines = view.frame(replace(IDLE, num_output_tokens=num_tokens, num_steps=num_tokens), float(now))
        assert f"tokens/s {(0, 100, 89_900, 0, 100)[now]:>10,}" in lines[2]


def test_a_server_without_its_executor_says_so() -> None:
    view = View("here:1", colours=False)
    assert "waiting for its executor" in view.frame(replace(IDLE, executor_healthy=False), 0.0)[0]
    assert "draining" in view.frame(replace(IDLE, draining=True), 1.0)[0]


_COUNTS = st.integers(0, 5000)


@given(_COUNTS, _COUNTS, _COUNTS, _COUNTS, st.booleans())
def test_the_map_has_a_cell_of_all_that_there_is_and_no_more_than_fit(
    shared: int, alone: int, cached: int, free: int, colours: bool
) -> None:
    total = shared + alone + cached + free
    load = replace(
        IDLE,
        num_total_blocks=total,
        num_held_blocks=shared + alone,
        num_shared_blocks=shared,
        num_cached_blocks=cached,
        num_free_blocks=free,
    )
    cells = "".join(View("here:1", colours).frame(load, 0.0)[8:])
    named = {"shared": "█", "alone": "▓", "cached": "▒", "free": "·"}
    counts = {name: cells.count(cell) for name, cell in named.items()}
    assert sum(counts.values()) == min(total, 64 * 6)
    for name, count in (("shared", shared), ("alone", alone), ("cached", cached), ("free", free)):
        if total >= 4:
            assert (counts[name] > 0) == (count > 0)
            assert abs(counts[name] - count * min(total, 64 * 6) / total) < 3


def test_top_prints_a_reading_once_without_colours_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with fake_server.running(fake_server.FakeServicer(fake_server.echo)) as address:
        assert main(["top", "--server", address, "--once", "--interval", "0.1"]) == 0
    told = capsys.readouterr().out
    assert "KV blocks" in told
    assert "\x1b" not in told


@pytest.mark.parametrize("interval", ["0", "nan", "61"])
def test_an_interval_out_of_range_is_named(interval: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--interval", interval]) == 2
    assert "--interval: must be in [0.1, 60]" in capsys.readouterr().err
