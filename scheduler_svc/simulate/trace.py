"""Traces: what arrives when. The native format is JSON lines, one request a line; blank lines are skipped.

    arrival_seconds      number >= 0, from any origin, in any order                             required
    num_prompt_tokens    integer >= 1                                                           this or the next
    prompt_token_ids     list of token ids >= 0, at least one                                   this or the former
    num_output_tokens    integer >= 1                                                           required
    prefix_id            string: prompts with the same one begin with the same tokens           optional
    num_prefix_tokens    integer in [1, num_prompt_tokens]: how many of them                    with prefix_id only
    priority             integer, higher runs first                                             default 0

Where only a length is given the token ids are made up, seeded (`workload.py`). Other fields are refused. Files of other
shapes are read by `public_traces.py`.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

_INT32 = 2**31


class TraceError(ValueError):
    """A trace, step log or profile that cannot be read; the message is one line that names file, line and field."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace; fields as in the native format."""

    arrival_seconds: float
    num_prompt_tokens: int
    num_output_tokens: int
    prompt_token_ids: tuple[int, ...] | None = None
    """None: to be made up."""
    prefix_id: str | None = None
    num_prefix_tokens: int = 0
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in the order of their arrival."""

    requests: tuple[TraceRequest, ...]
    has_arrivals: bool = True
    """Whether the arrival times mean anything: some public traces have none."""
    num_skipped: int = 0
    """Entries of a public trace that are no request: without a prompt or without an answer."""


def to_line(request: TraceRequest) -> str:
    """A request as a line of the native format."""
    fields = asdict(request)
    if request.prompt_token_ids is not None:
        del fields["num_prompt_tokens"]
    defaults = {"prompt_token_ids": None, "prefix_id": None, "num_prefix_tokens": 0, "priority": 0}
    return json.dumps({name: value for name, value in fields.items() if defaults.get(name, ...) != value})


def read_jsonl(name: str, lines: Iterable[str], limit: int | None = None) -> Trace:
    """Reads the native format, at most the first `limit` requests of the file; TraceError, with `name` in it."""
    requests: list[TraceRequest] = []
    for number, line in enumerate(lines, start=1):
        if limit is not None and len(requests) == limit:
            break
        if line.strip():
            requests.append(_to_request(FieldReader.of_line(f"{name}:{number}", line)))
    return Trace(tuple(sorted(requests, key=lambda request: request.arrival_seconds)))


def _to_request(fields: "FieldReader") -> TraceRequest:
    ids = fields.token_ids("prompt_token_ids")
    if ids is not None and "num_prompt_tokens" in fields.values:
        raise fields.error("num_prompt_tokens", "must not be given beside prompt_token_ids")
    num_prompt_tokens = fields.integer("num_prompt_tokens", 1) if ids is None else len(ids)
    prefix_id, num_prefix_tokens = fields.values.pop("prefix_id", None), 0
    if prefix_id is not None:
        if not isinstance(prefix_id, str):
            raise fields.error("prefix_id", f"must be a string, got {prefix_id!r}")
        if ids is not None:
            raise fields.error("prefix_id", "must not be given beside prompt_token_ids")
        num_prefix_tokens = fields.integer("num_prefix_tokens", 1, num_prompt_tokens)
    request = TraceRequest(
        arrival_seconds=fields.number("arrival_seconds"),
        num_prompt_tokens=num_prompt_tokens,
        num_output_tokens=fields.integer("num_output_tokens", 1),
        prompt_token_ids=ids,
        prefix_id=prefix_id,
        num_prefix_tokens=num_prefix_tokens,
        priority=fields.integer("priority", -_INT32, default=0),
    )
    fields.finish()
    return request


class FieldReader:
    """Takes the fields of a JSON object one by one; each error names the place and the field."""

    def __init__(self, place: str, values: Any) -> None:
        """`place` is what every message begins with, such as "trace.jsonl:3"."""
        if not isinstance(values, dict):
            raise TraceError(f"{place}: must be a JSON object")
        self.place = place
        self.values = dict(values)

    @classmethod
    def of_line(cls, place: str, line: str) -> "FieldReader":
        """The reader of one line of JSON."""
        try:
            return cls(place, json.loads(line))
        except (json.JSONDecodeError, RecursionError) as error:
            raise TraceError(f"{place}: not JSON ({error})") from None

    def error(self, name: str, reason: str) -> TraceError:
        """The error about one field."""
        return TraceError(f"{self.place}: {name}: {reason}")

    def integer(self, name: str, least: int, most: int = _INT32 - 1, *, default: int | None = None) -> int:
        """Takes an integer in [least, most]."""
        value = self._take(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, f"must be an integer, got {value!r}")
        if not least <= value <= most:
            raise self.error(name, f"must be in [{least}, {most}], got {value}")
        return value

    def number(self, name: str, *, default: float | None = None) -> float:
        """Takes a finite number of at least 0."""
        value = self._take(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, f"must be a number, got {value!r}")
        if not math.isfinite(value) or value < 0:
            raise self.error(name, f"must be finite and at least 0, got {value}")
        return float(value)

    def string(self, name: str, *, default: str | None = None) -> str:
        """Takes a string."""
        value = self._take(name, default)
        if not isinstance(value, str):
            raise self.error(name, f"must be a string, got {value!r}")
        return value

    def token_ids(self, name: str) -> tuple[int, ...] | None:
        """Takes a list of token ids, at least one; None where it is absent."""
        if name not in self.values:
            return None
        ids = self.values.pop(name)
        if not isinstance(ids, list) or not ids:
            raise self.error(name, "must be a list of at least one token id")
        for index, token in enumerate(ids):
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < _INT32 - 2:
                raise self.error(f"{name}[{index}]", f"must be a token id, got {token!r}")
        return tuple(ids)

    def finish(self) -> None:
        """Refuses what was not taken."""
        for name in self.values:
            raise self.error(name, "unknown field")

    def _take(self, name: str, default: object) -> Any:
        if name not in self.values:
            if default is None:
                raise self.error(name, "is missing")
            return default
        return self.values.pop(name)
