"""Traces in the shapes in which people find them, and the choice between the readers.

azure       the Azure LLM inference traces: CSV with the columns TIMESTAMP, ContextTokens, GeneratedTokens.
sharegpt    a JSON list of {"conversations": [{"from": "human" | "gpt", "value": text}, ...]}. The first message of the
            human and the answer to it make a request; there are no arrival times, so a rate must be given. Text
            becomes tokens by a tokenizer, or where there is none four characters count as one.
"""

import csv
import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from scheduler_svc.simulate.trace import FieldReader, Trace, TraceError, TraceRequest, read_jsonl

FORMATS = ("jsonl", "azure", "sharegpt")
CHARACTERS_PER_TOKEN = 4
_AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_HUMAN, _MODEL = ("human", "user"), ("gpt", "chatgpt", "assistant")

Encode = Callable[[str], list[int]]


def read_trace(
    path: Path, trace_format: str | None = None, *, limit: int | None = None, encode: Encode | None = None
) -> Trace:
    """Reads at most the first `limit` requests of a file; without a format its content tells which it is.

    `encode` is the tokenizer of texts. TraceError where the file is missing, is not of the format or has no request.
    """
    text = read_text(path)
    match trace_format or guess_format(text):
        case "azure":
            trace = read_azure(str(path), text.split("\n"), limit)
        case "sharegpt":
            trace = read_sharegpt(str(path), text, limit, encode)
        case _:
            trace = read_jsonl(str(path), text.split("\n"), limit)
    if not trace.requests:
        raise TraceError(f"{path}: has no request")
    return trace


def read_text(path: Path) -> str:
    """The text of a file; TraceError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise TraceError(f"{path}: {reason}") from None


def guess_format(text: str) -> str:
    """A JSON list is sharegpt, a first line with Azure's columns azure, all else jsonl."""
    begin = text.lstrip()[:1000]
    if begin.startswith("["):
        return "sharegpt"
    return "azure" if "ContextTokens" in begin.partition("\n")[0] else "jsonl"


def read_azure(name: str, lines: Iterable[str], limit: int | None = None) -> Trace:
    """Reads Azure's CSV. Rows of 0 tokens are skipped: there are requests that were never answered."""
    rows = csv.DictReader(lines)
    missing = [column for column in _AZURE_COLUMNS if column not in (rows.fieldnames or ())]
    if missing:
        raise TraceError(f"{name}:1: {missing[0]}: no such column")
    times: list[datetime] = []
    requests: list[TraceRequest] = []
    num_skipped = 0
    for row in rows:
        if limit is not None and len(requests) == limit:
            break
        place = f"{name}:{rows.line_num}"
        num_prompt, num_output = _count(place, row, "ContextTokens"), _count(place, row, "GeneratedTokens")
        if not num_prompt or not num_output:
            num_skipped += 1
            continue
        times.append(_time(place, row["TIMESTAMP"]))
        seconds = (times[-1] - times[0]).total_seconds()
        requests.append(TraceRequest(seconds, num_prompt, num_output))
    requests.sort(key=lambda request: request.arrival_seconds)
    return Trace(tuple(requests), num_skipped=num_skipped)


def _count(place: str, row: dict[str, str | None], column: str) -> int:
    text = (row[column] or "").strip()
    if not (text.isascii() and text.isdigit()) or int(text) >= 2**31:
        raise TraceError(f"{place}: {column}: must be a number of tokens, got {text!r}")
    return int(text)


def _time(place: str, text: str | None) -> datetime:
    """The time; one without a zone is taken as UTC."""
    try:
        time = datetime.fromisoformat((text or "").strip())
    except ValueError:
        raise TraceError(f"{place}: TIMESTAMP: must be a date and time, got {text!r}") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def read_sharegpt(name: str, text: str, limit: int | None = None, encode: Encode | None = None) -> Trace:
    """Reads conversations. Those that do not begin with a human's text and its answer are skipped."""
    try:
        items = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise TraceError(f"{name}: not JSON ({error})") from None
    if not isinstance(items, list):
        raise TraceError(f"{name}: must be a JSON list of conversations")
    requests: list[TraceRequest] = []
    num_skipped = 0
    for index, item in enumerate(items):
        if limit is not None and len(requests) == limit:
            break
        exchange = _first_exchange(f"{name}: item {index}", item)
        if exchange is None:
            num_skipped += 1
        else:
            requests.append(_exchange_request(*exchange, encode))
    return Trace(tuple(requests), has_arrivals=False, num_skipped=num_skipped)


def _first_exchange(place: str, item: Any) -> tuple[str, str] | None:
    """The first human's text and the answer right after it; None where either is missing or empty."""
    messages = FieldReader(place, item).values.get("conversations")
    if not isinstance(messages, list):
        raise TraceError(f"{place}: conversations: must be a list of messages")
    readers = [
        FieldReader(f"{place}: conversations[{index}]", message) for index, message in enumerate(messages)
    ]
    pairs = [(reader.string("from"), reader.string("value")) for reader in readers]
    for (speaker, prompt), (next_speaker, answer) in pairwise(pairs):
        if speaker in _HUMAN:
            return (prompt, answer) if next_speaker in _MODEL and prompt and answer else None
    return None


def _exchange_request(prompt: str, answer: str, encode: Encode | None) -> TraceRequest:
    if encode is None:
        lengths = [-(-len(text) // CHARACTERS_PER_TOKEN) for text in (prompt, answer)]
        return TraceRequest(0.0, lengths[0], lengths[1])
    ids = encode(prompt)
    return TraceRequest(0.0, len(ids), len(encode(answer)), prompt_token_ids=tuple(ids))
