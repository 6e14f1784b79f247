"""A client process of load.py: streams what it is told to, and says when each message came.

A line on stdin is a job (JSON); "ready" answers it once the connections stand; the next line is the moment to begin, by
the monotonic clock that all processes of a machine share. Then one JSON line tells of each stream. While a job runs,
messages are kept as bytes and parsed at its end: reading them costs the client least so, and the server shares its
cores.
"""

import argparse
import asyncio
import gc
import json
import sys
from collections.abc import Iterator
from time import monotonic
from typing import Any

import grpc

from nanoserve.address import CHANNEL_OPTIONS
from nanoserve.v1 import inference_pb2 as pb

_METHOD = "/nanoserve.v1.InferenceService/Generate"
# So that each channel has a connection of its own.
_OPTIONS = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
_CONNECT_SECONDS = 30.0
_STREAM_SECONDS = 300.0  # so that a server that hangs ends the case


class Client:
    """The connections of this process, made as they are needed and kept."""

    def __init__(self, address: str, streams_per_connection: int) -> None:
        self._address = address
        self._streams_per_connection = streams_per_connection
        self._channels: list[grpc.aio.Channel] = []

    async def calls(self, num_slots: int) -> list[Any]:
        """One callable a slot, connected."""
        num_channels = -(-num_slots // self._streams_per_connection)
        while len(self._channels) < num_channels:
            channel = grpc.aio.insecure_channel(self._address, options=_OPTIONS)
            await asyncio.wait_for(channel.channel_ready(), _CONNECT_SECONDS)
            self._channels.append(channel)
        calls: list[Any] = [channel.unary_stream(_METHOD) for channel in self._channels]
        return [calls[slot // self._streams_per_connection] for slot in range(num_slots)]


async def follow(call: Any, requests: Iterator[bytes], streams: list[Any]) -> None:
    """One slot: takes the next request whenever its last one has ended."""
    for request in requests:
        times: list[float] = []
        messages: list[bytes] = []
        sent = monotonic()
        async for message in call(request, timeout=_STREAM_SECONDS):
            times.append(monotonic())
            messages.append(message)
        streams.append((sent, times, messages))


def encoded(prompt: dict[str, Any], temperature: float) -> bytes:
    """A request as it goes onto the wire."""
    return pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=prompt["token_ids"]),
        sampling=pb.SamplingParams(temperature=temperature),
        stop=pb.StopParams(max_tokens=prompt["num_output_tokens"], ignore_eos=True),
    ).SerializeToString()


def decoded(sent: float, times: list[float], messages: list[bytes]) -> dict[str, Any]:
    """When tokens of a stream came, and how many each time."""
    arrivals, counts = [], []
    for time, data in zip(times, messages, strict=True):
        count = len(pb.GenerateResponse.FromString(data).delta.token_ids)
        if count:
            arrivals.append(time)
            counts.append(count)
    return {"sent": sent, "arrivals": arrivals, "num_tokens": counts}


async def serve(arguments: argparse.Namespace) -> None:
    """Does job after job until stdin ends."""
    client = Client(arguments.address, arguments.streams_per_connection)
    while line := await asyncio.to_thread(sys.stdin.readline):
        job = json.loads(line)
        requests = [encoded(prompt, job["temperature"]) for prompt in job["prompts"]]
        calls = await client.calls(job["num_slots"])
        print("ready", flush=True)
        begin = float(await asyncio.to_thread(sys.stdin.readline))
        gc.collect()
        gc.disable()
        await asyncio.sleep(max(0.0, begin - monotonic()))
        queue, streams = iter(requests), list[Any]()
        await asyncio.gather(*(follow(call, queue, streams) for call in calls))
        gc.enable()
        print(json.dumps([decoded(*stream) for stream in streams]), flush=True)


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--streams-per-connection", type=int, required=True)
    asyncio.run(serve(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
