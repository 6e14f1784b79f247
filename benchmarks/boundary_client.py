"""A client process of boundary.py: holds streams open for ever, and says what it got whenever a line comes in.

Each stream is one Generate call after the other. A line on stdin is answered by one JSON line on stdout, with the
tokens and messages received so far; the end of stdin ends the process.
"""

import argparse
import asyncio
import json
import random
import sys
from dataclasses import dataclass
from typing import Any

import grpc

from nanoserve.address import CHANNEL_OPTIONS
from nanoserve.v1 import inference_pb2 as pb
from nanoserve.v1.inference_pb2_grpc import InferenceServiceStub

# So that each channel has a connection of its own.
_OPTIONS = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]


@dataclass(slots=True)
class Counts:
    """What this process has received."""

    num_tokens: int = 0
    num_messages: int = 0
    num_streams: int = 0
    """Streams that have got a token."""


async def hold(stub: Any, counts: Counts, num_tokens: int, seed: int) -> None:
    """One stream, for ever. The first call's length is random, so that streams do not all end together."""
    source = random.Random(seed)
    length = source.randint(num_tokens // 2, num_tokens)
    is_new = True
    while True:
        request = pb.GenerateRequest(stop=pb.StopParams(max_tokens=length, ignore_eos=True))
        request.token_ids.ids.extend(source.randrange(512) for _ in range(source.randint(8, 32)))
        async for message in stub.Generate(request):
            counts.num_messages += 1
            if message.HasField("delta"):
                counts.num_tokens += len(message.delta.token_ids)
                counts.num_streams += is_new
                is_new = False
        length = num_tokens


async def run(arguments: argparse.Namespace) -> None:
    """Holds the streams until stdin ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    counts, tasks = Counts(), []
    for index in range(arguments.streams):
        if index % arguments.streams_per_connection == 0:
            stub = InferenceServiceStub(grpc.aio.insecure_channel(arguments.address, options=_OPTIONS))
        tasks.append(asyncio.ensure_future(hold(stub, counts, arguments.tokens, arguments.seed + index)))
    while await reader.readline():
        for task in tasks:
            if task.done():
                task.result()
        print(json.dumps([counts.num_tokens, counts.num_messages, counts.num_streams]), flush=True)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    for name in ("streams", "tokens", "seed", "streams-per-connection"):
        parser.add_argument(f"--{name}", type=int, required=True)
    asyncio.run(run(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
