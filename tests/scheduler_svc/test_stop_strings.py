"""Stop strings in a text that comes in pieces, against a search that sees the whole text."""

from hypothesis import given
from hypothesis import strategies as st

from scheduler_svc.stop_strings import StopPattern, StopScanner

texts = st.text("ab", max_size=30)
stops = st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=4, unique=True)


def first_complete(text: str, stops: list[str]) -> tuple[int, str] | None:
    """Where the first stop string to be complete ends, and which; of several the longest."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return end, max(ending, key=len)
    return None


@given(texts, stops, st.lists(st.integers(1, 5), min_size=30, max_size=30))
def test_the_first_to_be_complete_is_found_however_the_text_is_cut(
    text: str, stops: list[str], cuts: list[int]
):
    scanner = StopScanner([StopPattern(stop) for stop in stops])
    position = 0
    found = None
    while position < len(text) and found is None:
        piece = text[position : position + cuts.pop()]
        match = scanner.feed(piece)
        if match is not None:
            found = (position + match.end, match.text)
        position += len(piece)
    assert found == first_complete(text, stops)


@given(texts, stops)
def test_just_what_may_begin_a_stop_string_is_held(text: str, stops: list[str]):
    scanner = StopScanner([StopPattern(stop) for stop in stops])
    for end, character in enumerate(text, start=1):
        if scanner.feed(character) is not None:
            return
        seen = text[:end]
        held = max((k for stop in stops for k in range(len(stop)) if seen.endswith(stop[:k])), default=0)
        assert scanner.num_held == held


def test_a_later_occurrence_is_found_after_one_that_was_passed_over():
    scanner = StopScanner([StopPattern("aba")])
    assert scanner.feed("xaba") is not None
    match = scanner.feed("ba")  # overlaps the one before
    assert match is not None
    assert match.end == 2
