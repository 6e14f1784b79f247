"""Readers of traces and profiles: what is written is read, and what is wrong is named."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from scheduler_svc.simulate.profile import SIZES, ExecutorProfile, read_profile, write_profile
from scheduler_svc.simulate.public_traces import guess_format, read_azure, read_sharegpt, read_trace
from scheduler_svc.simulate.trace import TraceError, TraceRequest, read_jsonl, to_line

counts = st.integers(1, 2**31 - 1)
seconds = st.floats(0, 1e9)


@st.composite
def trace_requests(draw: st.DrawFn) -> TraceRequest:
    shape = draw(st.sampled_from(["length", "ids", "prefix"]))
    rest = {"arrival_seconds": draw(seconds), "num_output_tokens": draw(counts)}
    rest["priority"] = draw(st.integers(-5, 5))
    if shape == "ids":
        ids = tuple(draw(st.lists(st.integers(0, 2**31 - 3), min_size=1, max_size=5)))
        return TraceRequest(num_prompt_tokens=len(ids), prompt_token_ids=ids, **rest)
    length = draw(counts)
    if shape == "length":
        return TraceRequest(num_prompt_tokens=length, **rest)
    prefix = draw(st.integers(1, length))
    return TraceRequest(
        num_prompt_tokens=length,
        prefix_id=draw(st.text('a\u2028"é', max_size=4)),
        num_prefix_tokens=prefix,
        **rest,
    )


@given(st.lists(trace_requests(), max_size=6), st.none() | st.integers(0, 6))
def test_what_is_written_is_read_in_order_of_arrival(requests: list[TraceRequest], limit: int | None) -> None:
    lines = [line for request in requests for line in (to_line(request), "  ")]
    trace = read_jsonl("t", lines, limit)
    assert list(trace.requests) == sorted(requests[:limit], key=lambda request: request.arrival_seconds)


GOOD = {"arrival_seconds": 0, "num_prompt_tokens": 8, "num_output_tokens": 2}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_output_tokens": 0}, "num_output_tokens: must be in [1, 2147483647], got 0"),
        ({"num_output_tokens": True}, "num_output_tokens: must be an integer, got True"),
        ({"num_output_tokens": 2.0}, "num_output_tokens: must be an integer, got 2.0"),
        ({"num_prompt_tokens": None}, "num_prompt_tokens: is missing"),
        ({"arrival_seconds": None}, "arrival_seconds: is missing"),
        ({"arrival_seconds": -1}, "arrival_seconds: must be finite and at least 0, got -1"),
        ({"arrival_seconds": float("nan")}, "arrival_seconds: must be finite and at least 0, got nan"),
        ({"arrival_seconds": "0"}, "arrival_seconds: must be a number, got '0'"),
        ({"prompt_token_ids": [1]}, "num_prompt_tokens: must not be given beside prompt_token_ids"),
        ({"num_prompt_tokens": None, "prompt_token_ids": []}, "prompt_token_ids: must be a list of at least"),
        ({"num_prompt_tokens": None, "prompt_token_ids": [1, -1]}, "prompt_token_ids[1]: must be a token id"),
        ({"prefix_id": 3}, "prefix_id: must be a string, got 3"),
        ({"prefix_id": "a"}, "num_prefix_tokens: is missing"),
        ({"prefix_id": "a", "num_prefix_tokens": 9}, "num_prefix_tokens: must be in [1, 8], got 9"),
        ({"num_prefix_tokens": 4}, "num_prefix_tokens: unknown field"),
        ({"ouput_tokens": 4}, "ouput_tokens: unknown field"),
    ],
)
def test_a_bad_field_is_named_with_its_line(changes: dict[str, object], told: str) -> None:
    bad = {name: value for name, value in (GOOD | changes).items() if value is not None}
    with pytest.raises(TraceError) as failure:
        read_jsonl("t.jsonl", [json.dumps(GOOD), "", json.dumps(bad)])
    assert str(failure.value).startswith(f"t.jsonl:3: {told}")


@pytest.mark.parametrize("line", ["{", "[1]", "7", "[" * 100_000])
def test_a_line_that_is_no_object_is_refused(line: str) -> None:
    with pytest.raises(TraceError, match=r"^t:1: (not JSON|must be a JSON object)"):
        read_jsonl("t", [line])


@given(
    st.lists(
        st.tuples(st.integers(0, 10**12), st.integers(0, 9999), st.integers(0, 9999)), min_size=1, max_size=20
    )
)
def test_azure_rows_become_requests_from_the_first_on(rows: list[tuple[int, int, int]]) -> None:
    rows = sorted(rows)
    begin = datetime(2023, 11, 16, 18, 15, 46, tzinfo=UTC)
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for microseconds, prompt, output in rows:
        time = (begin + timedelta(microseconds=microseconds)).replace(tzinfo=None)
        lines.append(f"{time.isoformat(sep=' ', timespec='microseconds')}0,{prompt},{output}")
    trace = read_azure("a", lines)
    served = [row for row in rows if row[1] and row[2]]
    assert trace.num_skipped == len(rows) - len(served)
    assert [(r.num_prompt_tokens, r.num_output_tokens) for r in trace.requests] == [row[1:] for row in served]
    expected = [(row[0] - served[0][0]) * 1e-6 for row in served]
    assert [r.arrival_seconds for r in trace.requests] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("2023-11-16 18:15:46,x,4", "a:2: ContextTokens: must be a number of tokens, got 'x'"),
        ("2023-11-16 18:15:46,4", "a:2: GeneratedTokens: must be a number of tokens, got ''"),
        ("2023-11-16 18:15:46,4,-1", "a:2: GeneratedTokens: must be a number of tokens, got '-1'"),
        ("soon,4,4", "a:2: TIMESTAMP: must be a date and time, got 'soon'"),
    ],
)
def test_a_bad_azure_row_is_named(line: str, told: str) -> None:
    with pytest.raises(TraceError) as failure:
        read_azure("a", ["TIMESTAMP,ContextTokens,GeneratedTokens", line])
    assert str(failure.value) == told


def test_a_missing_azure_column_is_named() -> None:
    with pytest.raises(TraceError, match=r"^a:1: GeneratedTokens: no such column$"):
        read_azure("a", ["TIMESTAMP,ContextTokens", "x,1"])


def conversation(*messages: tuple[str, str]) -> dict[str, object]:
    return {"id": "x", "conversations": [{"from": speaker, "value": text} for speaker, text in messages]}


@given(st.lists(st.tuples(st.text(), st.text()), max_size=8))
def test_the_first_exchange_of_a_conversation_is_a_request(exchanges: list[tuple[str, str]]) -> None:
    items = [conversation(("human", prompt), ("gpt", answer), ("human", "x")) for prompt, answer in exchanges]
    trace = read_sharegpt("s", json.dumps(items))
    full = [(prompt, answer) for prompt, answer in exchanges if prompt and answer]
    assert not trace.has_arrivals
    assert trace.num_skipped == len(exchanges) - len(full)
    assert [(r.num_prompt_tokens, r.num_output_tokens) for r in trace.requests] == [
        ((len(prompt) + 3) // 4, (len(answer) + 3) // 4) for prompt, answer in full
    ]


def test_a_tokenizer_counts_where_there_is_one() -> None:
    items = [conversation(("system", "s"), ("user", "ab"), ("assistant", "cde"))]
    trace = read_sharegpt("s", json.dumps(items), encode=lambda text: [ord(letter) for letter in text])
    assert trace.requests == (TraceRequest(0.0, 2, 3, prompt_token_ids=(97, 98)),)


@pytest.mark.parametrize(
    "messages", [[], [("gpt", "a")], [("human", "a")], [("human", "a"), ("human", "b"), ("gpt", "c")]]
)
def test_a_conversation_without_an_answered_first_text_is_skipped(messages: list[tuple[str, str]]) -> None:
    trace = read_sharegpt("s", json.dumps([conversation(*messages)]))
    assert (trace.requests, trace.num_skipped) == ((), 1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[", "s: not JSON"),
        ("{}", "s: must be a JSON list"),
        ("[3]", "s: item 0: must be a JSON object"),
        ('[{"conversations": []}, {}]', "s: item 1: conversations: must be a list of messages"),
        ('[{"conversations": [{"from": "human"}]}]', "s: item 0: conversations[0]: value: is missing"),
        (
            '[{"conversations": [{"from": 3, "value": ""}]}]',
            "s: item 0: conversations[0]: from: must be a string",
        ),
    ],
)
def test_a_bad_conversation_is_named(text: str, told: str) -> None:
    with pytest.raises(TraceError) as failure:
        read_sharegpt("s", text)
    assert str(failure.value).startswith(told)


def test_the_content_tells_the_format(tmp_path: Path) -> None:
    azure = "\ufeffTIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,2162,5\n"
    sharegpt = json.dumps([conversation(("human", "a"), ("gpt", "b"))], indent=1)
    native = f"\n{json.dumps(GOOD)}\n"
    for name, text in (("azure", azure), ("sharegpt", sharegpt), ("jsonl", native)):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        assert guess_format(text) == name
        assert len(read_trace(path).requests) == 1
        assert read_trace(path, name).requests == read_trace(path).requests
    with pytest.raises(TraceError, match="TIMESTAMP: no such column"):
        read_trace(tmp_path / "jsonl", "azure")


def test_a_file_that_is_missing_or_empty_or_no_text_is_named(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe\x00")
    for path, told in (
        (tmp_path / "none", "No such file"),
        (empty, "has no request"),
        (binary, "is not UTF-8"),
    ):
        with pytest.raises(TraceError) as failure:
            read_trace(path)
        assert str(failure.value).startswith(f"{path}: {told}")


@given(
    st.builds(
        ExecutorProfile,
        *[st.floats(0, 1e6)] * 4,
        *[st.none() | counts] * len(SIZES),
        st.text(st.characters(exclude_categories=["Cs"])),
    )
)
def test_a_profile_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, profile) -> None:
    path = tmp_path_factory.mktemp("profiles") / "profile.json"
    write_profile(path, profile)
    assert read_profile(path) == profile


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not JSON"),
        ("[]", "must be a JSON object"),
        ('{"fixed_ms": 1, "token_us": 1}', "kv_token_ns: is missing"),
        ('{"fixed_ms": -1, "token_us": 1, "kv_token_ns": 1}', "fixed_ms: must be finite and at least 0"),
        ('{"fixed_ms": 1, "token_us": 1, "kv_token_ns": 1, "speed": 1}', "speed: unknown field"),
        ('{"fixed_ms": 1, "token_us": 1, "kv_token_ns": 1, "block_size": 0}', "block_size: must be in [1,"),
        ('{"fixed_ms": 1, "token_us": 1, "kv_token_ns": 1, "source": 1}', "source: must be a string"),
    ],
)
def test_a_bad_profile_is_named(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(TraceError) as failure:
        read_profile(path)
    assert str(failure.value).startswith(f"{path}: {told}")
