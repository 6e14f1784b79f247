"""Commands of API workers, between messages.py and protobuf.

Decoding raises FrameError where a message could not have been made by the encoding beside it.
"""

from dataclasses import fields
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from nanoserve.arrays import pack_int32
from nanoserve.scheduler.v1 import worker_pb2 as pb
from scheduler_svc import messages as msg
from scheduler_svc.core.request import Guide, Request, Sampling
from scheduler_svc.framing import FrameError

_INT32 = np.dtype("<i4")
_PLAIN_SAMPLING = tuple(
    entry.name
    for entry in fields(Sampling)
    if entry.name not in ("logit_bias", "logprobs", "prompt_logprobs")
)


def decode_frame(kind: type[Any], data: bytes) -> Any:
    """Parses a WorkerFrame or EngineFrame."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise FrameError(f"not a {kind.DESCRIPTOR.name}") from error


def decode_column(data: bytes, kind: np.dtype[Any]) -> Any:
    """The numbers of a column, `[len(data) / kind.itemsize]`."""
    try:
        return np.frombuffer(data, kind)
    except ValueError as error:
        raise FrameError(f"{len(data)} bytes are no column of {kind}") from error


def encode_command(command: msg.Command) -> pb.Command:
    """A command of a worker."""
    message = pb.Command(key=command.key)
    match command:
        case msg.Submit():
            message.submit.CopyFrom(_encode_request(command.request))
            message.submit.tenant = command.tenant
        case msg.Abort():
            message.abort.indices.extend(command.indices or ())
            message.abort.SetInParent()
        case msg.LoadQuery():
            message.load_query.SetInParent()
        case msg.ResetPrefixCache():
            message.reset_prefix_cache.SetInParent()
        case msg.Drain():
            message.drain.CopyFrom(pb.Drain(timeout_seconds=command.timeout_seconds))
        case msg.StartProfile():
            message.start_profile.CopyFrom(pb.StartProfile(num_steps=command.num_steps))
        case msg.StopProfile():
            message.stop_profile.SetInParent()
        case msg.SwitchExecutor():
            message.switch_executor.CopyFrom(pb.SwitchExecutor(executor=command.executor))
    return message


def decode_command(message: pb.Command, key: int) -> msg.Command:
    """A command of a worker, under the engine's key."""
    match message.WhichOneof("command"):
        case "submit":
            return msg.Submit(key, _decode_request(message.submit), message.submit.tenant)
        case "abort":
            return msg.Abort(key, tuple(message.abort.indices) or None)
        case "load_query":
            return msg.LoadQuery(key)
        case "reset_prefix_cache":
            return msg.ResetPrefixCache(key)
        case "drain":
            drain = message.drain
            return msg.Drain(key, drain.timeout_seconds if drain.HasField("timeout_seconds") else None)
        case "start_profile":
            return msg.StartProfile(key, message.start_profile.num_steps)
        case "stop_profile":
            return msg.StopProfile(key)
        case "switch_executor":
            return msg.SwitchExecutor(key, message.switch_executor.executor)
    raise FrameError("a command that says nothing")


def _encode_request(request: Request) -> pb.Submit:
    sampling = request.sampling
    return pb.Submit(
        request_id=request.request_id,
        prompt_token_ids=pack_int32(request.prompt_token_ids),
        max_tokens=request.max_tokens,
        seed=request.seed,
        n=request.n,
        sampling=pb.Sampling(
            **{name: getattr(sampling, name) for name in _PLAIN_SAMPLING},
            logit_bias_ids=[token_id for token_id, _ in sampling.logit_bias],
            logit_bias=[bias for _, bias in sampling.logit_bias],
            logprobs=sampling.logprobs,
            prompt_logprobs=sampling.prompt_logprobs,
        ),
        min_tokens=request.min_tokens,
        end_token_ids=request.end_token_ids,
        priority=request.priority,
        cache_salt=request.cache_salt,
        resumed=[
            pb.ResumedOutput(finished=True)
            if known is None
            else pb.ResumedOutput(token_ids=pack_int32(known))
            for known in request.resumed
        ],
        guide=None if request.guide is None else pb.Guide(kind=request.guide.kind, text=request.guide.text),
    )


def _decode_request(message: pb.Submit) -> Request:
    sampling = message.sampling
    prompt = decode_column(message.prompt_token_ids, _INT32)
    if not len(prompt) or len(sampling.logit_bias_ids) != len(sampling.logit_bias):
        raise FrameError("a request without a prompt, or with half a logit bias")
    return Request(
        request_id=message.request_id,
        prompt_token_ids=prompt,
        max_tokens=message.max_tokens,
        seed=message.seed,
        n=message.n,
        sampling=Sampling(
            **{name: getattr(sampling, name) for name in _PLAIN_SAMPLING},
            logit_bias=tuple(zip(sampling.logit_bias_ids, sampling.logit_bias, strict=True)),
            logprobs=sampling.logprobs if sampling.HasField("logprobs") else None,
            prompt_logprobs=sampling.prompt_logprobs if sampling.HasField("prompt_logprobs") else None,
        ),
        min_tokens=message.min_tokens,
        end_token_ids=tuple(message.end_token_ids),
        priority=message.priority,
        cache_salt=message.cache_salt,
        resumed=tuple(
            None if output.finished else decode_column(output.token_ids, _INT32) for output in message.resumed
        ),
        guide=Guide(message.guide.kind, message.guide.text) if message.HasField("guide") else None,
    )
