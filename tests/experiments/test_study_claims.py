"""Ratios are of the right rows, the right way round; tables say what the JSON says, and nothing where there is none."""

import re

import pytest

from benchmarks.shapes import SHAPES, Shape
from benchmarks.watch import Reading
from experiments.crash_cost import seconds_away
from experiments.roofline import decode_operations, point, prefill_bytes, prefill_operations
from experiments.store import StudyError
from experiments.study_claims import CLAIMS, Rows, read_set
from experiments.study_report import DATA, PAGES, SETS, filled
from nanoserve.v1 import admin_pb2

ROWS: Rows = {
    "static_vs_continuous": {
        "equal: naive": {"tok_s": 10.0},
        "equal: static": {"tok_s": 200.0},
        "W6: static": {"tok_s": 100.0, "padded_tokens": 900, "output_tokens": 400},
        "W6: continuous": {"tok_s": 250.0, "padded_tokens": 0, "output_tokens": 400},
    },
    "prefix_cache_eval": {"caching on, 4096": {"cold_ms": 21.0, "warm_ms": 3.0}},
    "cuda_graphs": {"eager, batch 1": {"ms_per_step": 6.0}, "graphs, batch 1": {"ms_per_step": 1.5}},
    "planning_ahead": {
        f"{depth} {streams}": {
            "steps_a_plan": "one step a plan",
            "depth": depth,
            "streams": streams,
            "tok_s": rate,
        }
        for depth, streams, rate in ((1, 1, 5.0), (2, 1, 50.0), (1, 64, 100.0), (2, 64, 130.0))
    },
}
NONE: dict[str, Rows] = {"h200-0.6b": {}, "h200-14b": {}, "cpu-demo": {}}
# One layer of two heads, whose products are small enough to count by hand.
SMALL = Shape(
    8, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=16, tied=True, head_dim=4, vocab_size=32
)


def values(rows: Rows) -> dict[str, float]:
    found = {claim.name: claim.value(rows) for claim in CLAIMS}
    return {name: value for name, value in found.items() if value is not None}


def test_ratios_are_of_what_they_say_and_over_one_where_the_idea_helps() -> None:
    assert values(ROWS) == pytest.approx(
        {
            "static over naive, equal requests": 20.0,
            "continuous over static, W6": 2.5,
            "new over known prefix of 4,096 tokens": 7.0,
            "eager over CUDA graphs, ms a step, batch 1": 4.0,
            "planning ahead over depth 1, one step a plan": 1.3,
        }
    )
    assert values({}) == {}


def test_a_page_says_what_is_measured_and_what_is_not() -> None:
    end = "<!-- end of table -->\n"
    page = f"before\n<!-- table: ratios -->\nold\n{end}between\n<!-- table: counts -->\n{end}"
    after = filled(page, NONE | {"h200-0.6b": ROWS})
    assert after.startswith("before\n<!-- table: ratios -->\n| ratio |")
    assert "old" not in after
    assert "| continuous over static, W6 | 2.1 | 2.1 |  | 2.5 | not yet | not yet |" in after
    assert "| padded tokens | 100 / 0 | 900 / 0 | not yet | not yet |" in after
    assert filled(after, NONE | {"h200-0.6b": ROWS}) == after


def test_the_committed_pages_say_what_the_committed_json_says() -> None:
    sets = {folder: read_set(DATA / folder) for folder in SETS}
    assert sets["cpu-demo"]
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert "<!-- table:" in text
        assert filled(text, sets) == text


def test_a_figure_is_shown_where_it_is_drawn() -> None:
    page = "<!-- table: figure:cuda_graphs -->\n<!-- end of table -->\n"
    assert "no picture yet" in filled(page, NONE)
    assert "../plots/cuda_graphs.png" in filled(page, NONE | {"h200-0.6b": ROWS})
    assert "no picture yet" in filled(page, NONE | {"h200-14b": ROWS})


def test_a_set_with_pictures_of_its_own_is_shown_with_them() -> None:
    page = "<!-- table: figure:cuda_graphs:h200-14b -->\n<!-- end of table -->\n"
    assert "no picture yet" in filled(page, NONE | {"h200-0.6b": ROWS})
    assert "14B](../plots/14b/cuda_graphs.png)" in filled(page, NONE | {"h200-14b": ROWS})


def test_every_picture_of_the_committed_pages_is_there() -> None:
    for page in PAGES:
        pictures = re.findall(r"!\[[^]]*\]\(([^)]*)\)", page.read_text(encoding="utf-8"))
        assert pictures
        assert all((page.parent / picture).exists() for picture in pictures)


def test_a_decode_step_does_two_operations_a_weight_and_four_a_head_value_of_context() -> None:
    matrices = SMALL.num_step_parameters
    assert decode_operations(SMALL, 1, 0) == 2 * matrices
    assert decode_operations(SMALL, 3, 10) == 3 * (2 * matrices + 10 * 4 * 2 * 4)


def test_a_prefill_does_what_its_tokens_would_one_by_one_but_for_the_output_head() -> None:
    num_tokens, head = 64, SMALL.vocab_size * SMALL.hidden_size
    one_by_one = sum(decode_operations(SMALL, 1, place + 0.5) for place in range(num_tokens))
    assert prefill_operations(SMALL, num_tokens) == one_by_one - 2 * head * (num_tokens - 1)


def test_a_batch_raises_the_intensity_of_the_weights_share_alone() -> None:
    shape = SHAPES["0.6b"]

    def intensity(batch: int, context: int) -> float:
        num_bytes = 2 * (shape.num_step_parameters + batch * context * shape.kv_values_per_token)
        return float(point(decode_operations(shape, batch, context), num_bytes, 1.0)["operations_per_byte"])

    assert intensity(1, 0) == pytest.approx(1.0)
    assert intensity(64, 0) == pytest.approx(64.0)
    # Two query heads share a KV head: two operations a byte, whatever the batch.
    assert intensity(64, 10**6) == pytest.approx(intensity(256, 10**6), rel=0.01)
    prefill = point(prefill_operations(shape, 4096), prefill_bytes(shape, 4096, 2), 10.0)
    assert prefill["operations_per_byte"] > 1000
    assert prefill["gb_s"] == pytest.approx(prefill_bytes(shape, 4096, 2) / 0.01 / 1e9)


def readings(healthy: str) -> list[Reading]:
    """One a second, `x` without an executor."""
    return [(float(at), admin_pb2.Load(executor_healthy=one != "x")) for at, one in enumerate(healthy)]


@pytest.mark.parametrize(("healthy", "seconds"), [("..xxx..", 3.0), ("..x.x..", 1.0), ("..xx", 1.0)])
def test_the_executor_is_away_from_its_loss_to_the_next_session(healthy: str, seconds: float) -> None:
    assert seconds_away(readings(healthy)) == seconds


def test_a_crash_that_nobody_saw_is_no_figure() -> None:
    with pytest.raises(StudyError, match="over too soon"):
        seconds_away(readings("....."))
