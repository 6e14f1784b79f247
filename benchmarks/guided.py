"""Tokens a second of guided rows beside unguided ones, through running services.

For each number of guided rows: so many closed loops of guided requests, and --unguided loops of others, for --seconds
after a warm-up. Requests are short enough that each row begins anew several times; all rows of a kind ask for the same
schema, whose grammar is compiled before. Prints a table, then one JSON line, last.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.report import print_json, print_table, rounded
from benchmarks.server import add_server_arguments, serving
from nanoserve_client import AsyncClient, Delta, GenerateOptions, Guided

_PROMPT = list(range(1, 33))
_CONNECTIONS = 8
_COLUMNS = ("guided", "unguided", "guided_tok_s", "guided_row_tok_s", "unguided_tok_s", "unguided_row_tok_s")
# Longer than any output that is asked for, so that max_tokens ends it: objects, strings, numbers and choices.
SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "kind": {"enum": ["plant", "animal", "mineral"]},
            "size": {"type": "integer", "minimum": 0, "maximum": 9999},
        },
        "required": ["name", "kind", "size"],
        "additionalProperties": False,
    },
}


@dataclass(slots=True)
class Counter:
    """Tokens that loops of one kind have received."""

    num_tokens: int = 0


async def _loop(client: AsyncClient, options: GenerateOptions, counter: Counter) -> None:
    while True:
        async with client.stream(_PROMPT, options=options) as stream:
            async for event in stream:
                if isinstance(event, Delta):
                    counter.num_tokens += len(event.token_ids)


async def measure(
    address: str, num_guided: int, num_unguided: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """One case's row of the table."""
    common = {"max_tokens": arguments.max_tokens, "temperature": 1.0}
    guided = GenerateOptions(guided=Guided(json_schema=SCHEMA), **common)
    unguided = GenerateOptions(ignore_eos=True, **common)
    counters = Counter(), Counter()
    async with AsyncClient(address, connections=_CONNECTIONS) as client:
        await client.generate(_PROMPT, options=GenerateOptions(guided=guided.guided, max_tokens=2))
        loops = [asyncio.ensure_future(_loop(client, guided, counters[0])) for _ in range(num_guided)]
        loops += [asyncio.ensure_future(_loop(client, unguided, counters[1])) for _ in range(num_unguided)]
        try:
            await _rest(arguments.warm_up_seconds, loops)
            before, begun = [counter.num_tokens for counter in counters], time.monotonic()
            await _rest(arguments.seconds, loops)
            seconds = time.monotonic() - begun
            rates = [(c.num_tokens - b) / seconds for c, b in zip(counters, before, strict=True)]
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
    return rounded(
        {
            "guided": num_guided,
            "unguided": num_unguided,
            "guided_tok_s": rates[0],
            "guided_row_tok_s": rates[0] / num_guided if num_guided else None,
            "unguided_tok_s": rates[1],
            "unguided_row_tok_s": rates[1] / num_unguided if num_unguided else None,
        }
    )


async def _measure_all(
    address: str, cases: Sequence[tuple[int, int]], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    return [await measure(address, *case, arguments) for case in cases]


async def _rest(seconds: float, loops: Sequence["asyncio.Future[None]"]) -> None:
    """Waits; raises what a loop has failed with, as none ends by itself."""
    if not loops:
        return
    done, _ = await asyncio.wait(loops, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for loop in done:
        loop.result()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--guided", default="0,1,64,256", help="numbers of guided rows (default: %(default)s)")
    made.add_argument(
        "--unguided", default="0,64", help="numbers of others beside them (default: %(default)s)"
    )
    made.add_argument("--max-tokens", type=int, default=256, help="of each request (default: %(default)s)")
    made.add_argument("--seconds", type=float, default=10.0, help="of each case (default: %(default)s)")
    made.add_argument("--warm-up-seconds", type=float, default=3.0, help="before it (default: %(default)s)")
    add_server_arguments(made)
    return made


def main() -> int:
    """Runs the command line."""
    arguments = parser().parse_args()
    numbers = {name: list(map(int, getattr(arguments, name).split(","))) for name in ("guided", "unguided")}
    cases = [(one, other) for other in numbers["unguided"] for one in numbers["guided"] if one or other]
    # The same rows, none of them guided: what the guide costs.
    cases += [(0, count) for count in numbers["guided"] if count and count not in numbers["unguided"]]
    num_rows = max(sum(case) for case in cases)
    with serving(arguments, [f"--max-num-seqs={num_rows}"]) as server:
        rows = asyncio.run(_measure_all(server.address, cases, arguments))
    print_table(rows, _COLUMNS)
    print_json(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
