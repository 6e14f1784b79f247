"""One output's state: text and ids that cover the same tokens, at every message boundary."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_factory import raw_tokenizer, small_tokenizer, vocab_size

from scheduler_svc.core.request import Finish
from scheduler_svc.messages import TokenLogprobs
from scheduler_svc.output import FinishReason, Output, OutputRules
from scheduler_svc.stop_strings import StopPattern

ids = st.lists(st.integers(0, vocab_size() - 1), min_size=1, max_size=40)
ab_ids = st.lists(
    st.sampled_from(
        [raw_tokenizer().token_to_id(token) for token in ("a", "b", "ab", "aa", "<|im_end|>", "Ã")]
    ),
    min_size=1,
    max_size=30,
)
ab_stops = st.lists(st.text("ab\ufffd", min_size=1, max_size=5), min_size=1, max_size=3, unique=True)


def new_output(stops: tuple[str, ...] = (), *, include_stop: bool = False, min_tokens: int = 0) -> Output:
    rules = OutputRules(tuple(StopPattern(stop) for stop in stops), include_stop, min_tokens)
    tokenizer = small_tokenizer()
    return Output(rules, tokenizer.token_bytes, tokenizer.raw_token_bytes)


def decode(token_ids: list[int]) -> str:
    return small_tokenizer().decode(token_ids, skip_special_tokens=True)


def token(text: str) -> int:
    token_id = raw_tokenizer().token_to_id(text)
    assert token_id is not None
    return int(token_id)


@dataclass
class Received:
    """What a client has, after any number of deltas."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()

    def take(self, output: Output, max_tokens: int = 1000) -> None:
        while (delta := output.take(max_tokens)) is not None:
            assert delta.token_ids
            self.text += delta.text
            self.token_ids += tuple(delta.token_ids)
            self.logprobs += tuple(entry.logprob for entry in delta.logprobs)


def logprob_of(index: int) -> TokenLogprobs:
    return TokenLogprobs(-float(index), 1, np.empty(0, np.int32), np.empty(0, np.float32))


@given(ids, st.integers(1, 5))
def test_text_and_ids_cover_the_same_tokens_at_every_boundary(token_ids: list[int], max_tokens: int):
    output, received = new_output(), Received()
    for token_id in token_ids[:-1]:
        output.push(token_id, Finish.NONE)
        received.take(output, max_tokens)
        assert received.text == decode(list(received.token_ids))
        assert received.token_ids == tuple(token_ids[: len(received.token_ids)])
    output.push(token_ids[-1], Finish.LENGTH)
    received.take(output, max_tokens)
    assert received.token_ids == tuple(token_ids)
    assert received.text == decode(token_ids)
    assert output.finished is not None
    assert output.finished.reason is FinishReason.LENGTH
    assert output.num_tokens == len(token_ids)


@given(ids)
def test_what_ends_a_character_is_never_held_without_a_stop_string(token_ids: list[int]):
    output, received = new_output(), Received()
    for count, token_id in enumerate(token_ids, start=1):
        output.push(token_id, Finish.NONE)
        received.take(output)
        table = small_tokenizer().token_bytes
        data = b"".join(table[i] for i in token_ids[:count] if i < len(table))
        try:
            data.decode()
        except UnicodeDecodeError:
            continue
        assert len(received.token_ids) == count


def expected_stop(token_ids: list[int], stops: list[str], min_tokens: int) -> tuple[int, int, str] | None:
    """(tokens kept, where the match ends, the match) by looking at the whole text behind each token."""
    seen = 0
    for count in range(1, len(token_ids) + 1):
        data = b"".join(small_tokenizer().token_bytes[token_id] for token_id in token_ids[:count])
        if count < len(token_ids):
            data = data.removesuffix(b"\xc3")  # of these tokens the only incomplete character
        text = data.decode(errors="replace")
        for end in range(seen + 1, len(text) + 1):
            ending = [stop for stop in stops if text[:end].endswith(stop)]
            if ending and count >= min_tokens:
                return count, end, max(ending, key=len)
        seen = len(text)
    return None


@given(ab_ids, ab_stops, st.booleans(), st.integers(0, 6), st.integers(1, 4))
def test_a_stop_string_ends_the_output_where_it_is_first_complete(
    token_ids: list[int], stops: list[str], include_stop: bool, min_tokens: int, max_tokens: int
):
    output = new_output(tuple(stops), include_stop=include_stop, min_tokens=min_tokens)
    received = Received()
    wanted = expected_stop(token_ids, stops, min_tokens)
    for index, token_id in enumerate(token_ids):
        is_last = index == len(token_ids) - 1
        output.push(token_id, Finish.LENGTH if is_last else Finish.NONE, logprob_of(index))
        received.take(output, max_tokens)
        if output.finished is None:
            assert received.text == decode(list(received.token_ids))
    assert output.finished is not None
    if wanted is None:
        assert output.finished.reason is FinishReason.LENGTH
        assert received.text == decode(token_ids)
        assert received.token_ids == tuple(token_ids)
    else:
        count, end, stop = wanted
        assert (output.finished.reason, output.finished.stop_string) == (FinishReason.STOP, stop)
        assert received.token_ids == tuple(token_ids[:count])
        whole = decode(token_ids)[:end]
        assert received.text == (whole if include_stop else whole.removesuffix(stop))
    assert output.num_tokens == len(received.token_ids)
    assert received.logprobs == tuple(-float(index) for index in range(len(received.token_ids)))


def test_a_partial_stop_string_holds_text_and_ids_back_across_tokens():
    output, received = new_output(("abab!",)), Received()
    for text in ("b", "a", "b", "a", "b"):
        output.push(token(text), Finish.NONE)
    received.take(output)
    assert (received.text, len(received.token_ids)) == ("b", 1)
    output.push(token("b"), Finish.NONE)  # not a stop string after all
    received.take(output)
    assert received.text == "bababb"


def test_a_match_within_a_token_cuts_its_text_and_keeps_its_id():
    output, received = new_output(("h",)), Received()
    output.push(token("the"), Finish.NONE)
    received.take(output)
    assert output.finished is not None
    assert (received.text, received.token_ids) == ("t", (token("the"),))


def test_tokens_past_a_stop_are_neither_sent_nor_counted():
    output, received = new_output(("a",)), Received()
    output.push(token("a"), Finish.NONE)
    output.push(token("b"), Finish.NONE)
    output.push(token("b"), Finish.LENGTH)
    received.take(output)
    assert (received.text, received.token_ids, output.num_tokens) == ("", (token("a"),), 1)
    assert output.finished is not None
    assert output.finished.stop_string == "a"


@pytest.mark.parametrize(("include_stop", "text"), [(False, "a\ufffd"), (True, "a\ufffd<|im_end|>")])
def test_a_stop_token_flushes_what_was_held_and_is_among_the_ids(include_stop: bool, text: str):
    output, received = new_output(("ab",), include_stop=include_stop), Received()
    end = token("<|im_end|>")
    for token_id in (token("a"), token("Ã")):
        output.push(token_id, Finish.NONE)
    output.push(end, Finish.STOP)
    received.take(output)
    assert received.text == text
    assert received.token_ids[-1] == end
    assert output.finished is not None
    assert (output.finished.reason, output.finished.stop_token_id) == (FinishReason.STOP, end)
    assert output.finished.stop_string is None


def test_an_output_given_up_flushes_what_was_held():
    output, received = new_output(("ab",)), Received()
    output.push(token("a"), Finish.NONE)
    received.take(output)
    assert received.token_ids == ()
    output.give_up()
    received.take(output)
    assert received.text == "a"
    assert output.finished is not None
    assert output.finished.reason is FinishReason.ABORTED


def test_tokens_that_pile_up_come_in_pieces_of_bounded_size():
    output = new_output()
    for _ in range(1000):
        output.push(token("a"), Finish.NONE)
    sizes = []
    while (delta := output.take(300)) is not None:
        assert len(delta.text) == len(delta.token_ids)
        sizes.append(len(delta.token_ids))
    assert sum(sizes) == 1000
    assert max(sizes) <= 300
    assert len(sizes) <= 5
