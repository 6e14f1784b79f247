"""500 random JSON schemas of growing depth: is every output that ends by itself JSON of its schema?

Starts the services with the shipped model, or asks those at --address, samples at a temperature of 1, and prints by
depth how many outputs ended STOP and how many of these conform; ends with status 0 only if all of them do.
"""

import argparse
import asyncio
import json
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.schemas import conforms, random_schema
from nanoserve_client import AsyncClient, FinishReason, Guided
from nanoserve_client.supervisor import LocalServer

_MAX_DEPTH = 5
_NUM_AT_ONCE = 16


async def try_schemas(
    address: str, count: int, max_tokens: int
) -> tuple[Counter[int], Counter[int], list[str]]:
    """Asks for `count` outputs; returns, by depth, how many were asked for and ended STOP, and what was wrong."""
    asked, stopped, wrong = Counter[int](), Counter[int](), list[str]()
    turn = asyncio.Semaphore(_NUM_AT_ONCE)

    async def ask(client: AsyncClient, seed: int) -> None:
        depth = seed * (_MAX_DEPTH + 1) // count
        schema = random_schema(seed, depth)
        async with turn:
            completion = await client.generate(
                "Answer in JSON: ",
                guided=Guided(json_schema=schema),
                max_tokens=max_tokens,
                temperature=1.0,
                seed=seed,
            )
        asked[depth] += 1
        if completion.outputs[0].finish_reason is FinishReason.STOP:
            stopped[depth] += 1
            if not _is_good(completion.text, schema):
                wrong.append(f"{json.dumps(schema)}: {completion.text!r}")

    async with AsyncClient(address) as client:
        await asyncio.gather(*(ask(client, seed) for seed in range(count)))
    return asked, stopped, wrong


def _is_good(text: str, schema: dict[str, object]) -> bool:
    try:
        return conforms(json.loads(text), schema)
    except ValueError:
        return False


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500, help="how many schemas (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=512, help="of each output (default: %(default)s)")
    parser.add_argument("--address", help="a server that runs already (default: start one)")
    arguments = parser.parse_args()
    with nullcontext() if arguments.address else LocalServer() as server:
        address = arguments.address or server.address
        asked, stopped, wrong = asyncio.run(try_schemas(address, arguments.count, arguments.max_tokens))
    for depth in sorted(asked):
        print(f"depth {depth}: {asked[depth]} schemas, {stopped[depth]} ended STOP")
    share = stopped.total() / asked.total()
    print(f"{share:.1%} of {asked.total()} ended STOP; {len(wrong)} of these do not conform")
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
