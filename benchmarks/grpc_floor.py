"""What gRPC in Python takes for a stream by itself: a server that does nothing but send, and a blocking client.

    python benchmarks/grpc_floor.py

Medians of milliseconds from the sending of a prompt of ids to the first message, the last one, and the call's end. The
server is of the same kind as the API's. Four messages are what a stream of one token has: started, delta, finished and
completed. What `first_token.py` says of the API is to be read beside this.
"""

import argparse
import asyncio
import multiprocessing
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import grpc

from benchmarks import workloads
from benchmarks.report import print_json, print_table
from nanoserve.address import CHANNEL_OPTIONS, SERVER_OPTIONS
from nanoserve.v1 import inference_pb2 as pb
from nanoserve.v1.inference_pb2_grpc import (
    InferenceServiceServicer,
    InferenceServiceStub,
    add_InferenceServiceServicer_to_server,
)

_COLUMNS = ("messages", "prompt", "first_ms", "last_ms", "end_ms")
_WARM_UP = 50
# Between calls, so that each finds processes that sleep.
_PAUSE_SECONDS = 0.002
_START_SECONDS = 30


class _Servicer(InferenceServiceServicer):
    """Answers with as many messages as `max_tokens` asks for."""

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> None:
        for number in range(request.stop.max_tokens):
            await context.write(pb.GenerateResponse(seq=number))


def _serve(connection: Connection) -> None:
    """The server's process: tells its port, and serves until it is killed."""

    async def serve() -> None:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        add_InferenceServiceServicer_to_server(_Servicer(), server)
        connection.send(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await server.wait_for_termination()

    asyncio.run(serve())


@contextmanager
def _served() -> Iterator[Any]:
    """The stub of a server in another process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        if not ours.poll(_START_SECONDS):
            raise TimeoutError(f"no server within {_START_SECONDS} s")
        with grpc.insecure_channel(f"127.0.0.1:{ours.recv()}", options=CHANNEL_OPTIONS) as channel:
            yield InferenceServiceStub(channel)
    finally:
        process.kill()
        process.join()


def measure(stub: Any, num_messages: int, prompt_tokens: int, reps: int) -> dict[str, Any]:
    """The row of streams of so many messages."""
    times: list[tuple[float, float, float]] = []
    request = pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=range(prompt_tokens)), stop=pb.StopParams(max_tokens=num_messages)
    )
    for _ in range(_WARM_UP + reps):
        time.sleep(_PAUSE_SECONDS)
        begun = time.perf_counter()
        arrivals = [time.perf_counter() for _ in stub.Generate(request, wait_for_ready=True)]
        times.append((arrivals[0] - begun, arrivals[-1] - begun, time.perf_counter() - begun))
    figures = (round(median(values) * 1e3, 3) for values in zip(*times[_WARM_UP:], strict=True))
    return {"messages": num_messages, "prompt": prompt_tokens} | dict(zip(_COLUMNS[2:], figures, strict=True))


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default, text in (
        ("prompt-tokens", workloads.W4.num_prompt_tokens, "ids of the prompt"),
        ("reps", 300, "calls that count"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default: %(default)s)"
        )
    arguments = parser.parse_args()
    with _served() as stub:
        rows = [measure(stub, number, arguments.prompt_tokens, arguments.reps) for number in (1, 2, 4)]
    print_table(rows, _COLUMNS)
    print_json(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
