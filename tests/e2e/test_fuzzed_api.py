"""Fuzzed calls of everything that a scheduler and its executor serve, with a good client beside them."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from fuzzing import NUM_CALLS, Method, call_raw, calls_with_flat_memory, methods_of, strictly
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from raw_http2 import send_garbage
from wild import disturb, garble, wild_message

from nanoserve.address import CHANNEL_OPTIONS
from nanoserve.executor.v1 import executor_pb2
from nanoserve.v1 import admin_pb2, inference_pb2
from nanoserve_client import Client

COMMON = [health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR]
API = methods_of(
    *(
        service
        for file in (inference_pb2.DESCRIPTOR, admin_pb2.DESCRIPTOR, *COMMON)
        for service in file.services_by_name.values()
    )
)
EXECUTOR = methods_of(
    *(service for file in (executor_pb2.DESCRIPTOR, *COMMON) for service in file.services_by_name.values())
)
QUESTION = [{"role": "user", "content": "What is 123 + 45?"}]
HIGHEST = 2**31 - 1
GUIDES = (
    "[0-9]{1,4}",
    "(a|b)*c",
    "(((a{1,99}){1,99}){1,99})",
    "(?i)[\\p{L}]+",
    '{"type": "object", "properties": {"a": {"enum": [1, null, "\\u0000"]}}, "required": ["a"]}',
    '{"$ref": "#"}',
    '{"type": "string", "pattern": "^(a+)+$", "maxLength": 100000000}',
    'start: "a" start | "b"',
    "start: start start",
)
SIZES = ("--num-kv-blocks=513", "--max-num-seqs=16")
# Of all calls: with the demo model, and with a virtual executor, which is faster.
SHARES = {"real": 0.4, "virtual": 0.2}
FIRST = {"real": 0, "virtual": 1_000_000}


def generate_request(rng: random.Random) -> inference_pb2.GenerateRequest:
    """A good request, such as only one wild field makes wrong; many of its parameters are at their edges."""
    request = inference_pb2.GenerateRequest(priority=rng.choice((0, -(2**31), 2**31 - 2)))
    request.stop.max_tokens = rng.choice((1, 3, 20))
    match rng.randrange(3):
        case 0:
            request.text = "one two three four five six seven " * rng.choice((1, 5))
        case 1:
            request.token_ids.ids.extend(rng.randrange(768) for _ in range(rng.choice((1, 40))))
        case _:
            request.chat.messages.add(role="user", content="What is 2 + 2?")
    if rng.random() < 0.7:
        request.sampling.CopyFrom(extreme_sampling(rng))
    if rng.random() < 0.3:
        request.output.logprobs, request.output.prompt_logprobs = rng.choice((0, 20)), rng.choice((0, 20))
    if rng.random() < 0.3:
        setattr(request.guided, rng.choice(("regex", "json_schema", "grammar")), rng.choice(GUIDES))
    if rng.random() < 0.3:
        request.stop.strings.extend(rng.choice(("e", "<|im_end|>", "\0", "7" * 1024)) for _ in range(16))
        request.stop.min_tokens = request.stop.max_tokens
    if rng.random() < 0.03:
        vast = "ab " * 1_200_000
        match rng.randrange(5):
            case 0:
                request.cache_salt = vast
            case 1:
                request.text = vast
            case 2:
                request.chat.messages.add(role="user", content=vast)
            case 3:
                request.request_id = vast
            case _:
                request.guided.regex = vast
    return request


def extreme_sampling(rng: random.Random) -> inference_pb2.SamplingParams:
    """Parameters that the contract allows, at their edges."""
    sampling = inference_pb2.SamplingParams(
        temperature=rng.choice((0.0, 1e-45, 1e-38, 1.0, 100.0)),
        top_p=rng.choice((1e-45, 1e-7, 1.0)),
        top_k=rng.choice((0, 1, 2**31 - 1)),
        min_p=rng.choice((0.0, 1e-45, 1.0)),
        repetition_penalty=rng.choice((1e-45, 1e-38, 1.0, 10.0)),
        frequency_penalty=rng.choice((-2.0, 0.0, 2.0)),
        presence_penalty=rng.choice((-2.0, 0.0, 2.0)),
        seed=rng.choice((0, 2**64 - 1)),
        n=rng.choice((1, 1, 2, 17, 128)),
    )
    for _ in range(rng.choice((0, 1, 768))):
        sampling.logit_bias[rng.randrange(768)] = rng.choice((-100.0, 1e-45, 100.0))
    return sampling


def request_for(rng: random.Random, method: Method) -> bytes:
    """A message for a method: good but for a few fields, wild, or none."""
    if method.request is inference_pb2.GenerateRequest.DESCRIPTOR and rng.random() < 0.7:
        message = generate_request(rng)
    else:
        message = GetMessageClass(method.request)()
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        disturb(rng, message)
    if rng.random() < 0.25:
        message = wild_message(rng, method.request)
    data = message.SerializeToString()
    return garble(rng, data, method.request) if rng.random() < 0.3 else data


def does_harm(method: Method, data: bytes) -> bool:
    """Whether the message is a good one whose very purpose is to keep others from being served."""
    try:
        message = GetMessageClass(method.request).FromString(data)
    except DecodeError:
        return False
    if isinstance(message, admin_pb2.DrainRequest):
        return 0 <= message.timeout_seconds < float("inf")
    return isinstance(message, executor_pb2.ExecuteRequest) and message.open.take_over


class Fuzz:
    """Calls to both services of a pair."""

    def __init__(self, api: str, executor: str) -> None:
        self._targets = [(api, API, _channel(api)), (executor, EXECUTOR, _channel(executor))]

    def one(self, rng: random.Random) -> str:
        """One call, to either."""
        address, methods, channel = self._targets[rng.random() < 0.3]
        generate = methods[0]
        method = generate if rng.random() < 0.4 else rng.choice(methods)
        messages = [request_for(rng, method) for _ in range(rng.choice((1, 1, 1, 1, 0, 2)))]
        if any(does_harm(method, message) for message in messages):
            return "left out"
        if rng.random() < 0.1:
            send_garbage(rng, address, method.path, messages[0] if messages else b"")
            return "garbage"
        path = method.path if rng.random() < 0.98 else method.path + "x"
        most = 1.5 if method is API[0] else 0.2  # of the others some never end by themselves
        return call_raw(rng, channel, path, messages, rng.choice((0.001, 0.05, most, most, most)))[0]


def _channel(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address, options=[*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)])


@contextmanager
def good_client(address: str) -> Iterator[None]:
    """Somebody who asks the same again and again, and must get the same answer."""
    stop, answers, failures = threading.Event(), [], []

    def ask() -> None:
        with Client(address) as client:
            while not stop.is_set():
                try:
                    answer = client.chat(
                        QUESTION, max_tokens=16, temperature=0.0, seed=7, priority=HIGHEST, timeout=30
                    )
                    answers.append(tuple(answer.token_ids))
                except Exception as failure:
                    failures.append(failure)
                    return

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not failures, failures
    assert len(set(answers)) == 1
    print(f"a good client got {len(answers)} answers, all alike")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["real", "virtual"])
def test_wild_calls_neither_break_the_services_nor_disturb_a_good_client(kind: str, tmp_path: Path):
    # Torch keeps every operator of a profile in memory until its end: what grows then is no leak.
    flags = ["--virtual", f"--profile-dir={tmp_path}"] if kind == "virtual" else ["--verify"]
    flags += [*SIZES, "--listen=127.0.0.1:0"]
    with strictly("executor_svc", *flags) as executor:
        executor_address = executor.event("listening")["address"]
        linked = [f"--executor={executor_address}", "--listen=127.0.0.1:0"]
        if kind == "virtual":
            linked.append("--api-workers=2")
        with strictly("scheduler_svc", *linked) as scheduler:
            address = scheduler.event("listening")["address"]
            with good_client(address):
                fuzz = Fuzz(address, executor_address)
                count = int(NUM_CALLS * SHARES[kind])
                print(calls_with_flat_memory(fuzz.one, FIRST[kind], count, scheduler, executor))
            with Client(address) as client:
                load = client.get_load()
            assert load.num_held_blocks == load.num_running_requests == load.num_waiting_requests == 0
