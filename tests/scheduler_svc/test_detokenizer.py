"""Text from token ids, one at a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_factory import SPECIAL, raw_tokenizer, small_tokenizer, vocab_size

from scheduler_svc.detokenizer import Detokenizer

ids = st.lists(st.integers(0, vocab_size() - 1), max_size=40)


def feed_all(token_ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(small_tokenizer().token_bytes)
    pieces = [detokenizer.feed(token_id) for token_id in token_ids]
    return [*pieces, detokenizer.flush()]


@given(ids)
def test_the_pieces_add_up_to_the_text_decoded_at_once(token_ids: list[int]):
    known = [i for i in token_ids if raw_tokenizer().id_to_token(i) is not None]
    assert "".join(feed_all(token_ids)) == raw_tokenizer().decode(known, skip_special_tokens=True)


@given(ids, st.booleans())
def test_decoding_at_once_is_what_the_tokenizer_library_does(token_ids: list[int], skip: bool):
    decoded = small_tokenizer().decode(token_ids, skip_special_tokens=skip)
    known = [i for i in token_ids if raw_tokenizer().id_to_token(i) is not None]
    assert decoded == raw_tokenizer().decode(known, skip_special_tokens=skip)


@given(st.text(max_size=60))
def test_no_character_of_a_real_text_is_split_or_replaced(text: str):
    token_ids = small_tokenizer().encode(text)
    pieces = feed_all(token_ids)
    whole = raw_tokenizer().decode(token_ids, skip_special_tokens=True)
    assert "".join(pieces) == whole
    assert pieces[-1] == ""
    if "\ufffd" not in whole:
        assert not any("\ufffd" in piece for piece in pieces)


@given(ids)
def test_pending_says_whether_bytes_wait(token_ids: list[int]):
    detokenizer = Detokenizer(small_tokenizer().token_bytes)
    table = small_tokenizer().token_bytes
    data = b""
    text = ""
    for token_id in token_ids:
        text += detokenizer.feed(token_id)
        data += table[token_id] if token_id < len(table) else b""
        complete = len(text.encode()) == len(data.decode(errors="replace").encode())
        assert detokenizer.is_pending is not complete


def test_a_character_of_four_tokens_comes_with_the_last():
    token_ids = [raw_tokenizer().token_to_id(character) for character in "ðŁĺ\u0124"]  # the bytes of U+1F602
    assert feed_all(token_ids) == ["", "", "", "\U0001f602", ""]


def test_special_tokens_add_nothing_to_the_text():
    token_ids = [raw_tokenizer().token_to_id(token) for token in SPECIAL]
    assert feed_all(token_ids) == [""] * 4
    assert small_tokenizer().decode(token_ids, skip_special_tokens=False) == "".join(SPECIAL)


@pytest.mark.parametrize("text", ["", "hello", "  x\n\n", "é", "<|im_start|>user", "e\u0301"])
def test_encoding_is_what_the_tokenizer_library_does(text: str):
    assert small_tokenizer().encode(text) == raw_tokenizer().encode(text, add_special_tokens=False).ids
