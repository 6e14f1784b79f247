"""Events of the engine, between messages.py and the protobuf of API workers.

Decoding raises FrameError where a message could not have been made by the encoding beside it.
"""

from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from nanoserve.arrays import pack_float32, pack_int32
from nanoserve.profiles import decode_profile, encode_profile
from nanoserve.scheduler.v1 import worker_pb2 as pb
from nanoserve.v1 import admin_pb2
from scheduler_svc import messages as msg
from scheduler_svc.core.request import Finish
from scheduler_svc.framing import FrameError
from scheduler_svc.worker_commands import decode_column

_INT8, _INT32, _INT64, _FLOAT32 = (np.dtype(name) for name in ("i1", "<i4", "<i8", "<f4"))
_LOAD_COUNTS = tuple(
    entry.name for entry in fields(msg.LoadReply) if entry.name not in ("key", "step_means", "step_totals")
)


def encode_event(event: msg.Event, key_of: Callable[[int], int]) -> pb.Event:
    """An event for a worker whose key of a request is `key_of` the engine's."""
    match event:
        case msg.StepBatch():
            message = pb.Event()
            _encode_step(message.step, event, key_of)
            return message
        case msg.EngineState():
            return pb.Event(state=pb.EngineState(**asdict(event)))
        case msg.ApiKeys():
            return pb.Event(api_keys=pb.ApiKeys(keys=[pb.ApiKey(**asdict(key)) for key in event.keys]))
        case msg.Accepted():
            return pb.Event(accepted=pb.Accepted(key=key_of(event.key), sequence_ids=event.sequence_ids))
        case msg.Refused():
            problem = _encode_problem(event.problem)
            return pb.Event(refused=pb.Refused(key=key_of(event.key), problem=problem))
        case msg.LoadReply():
            return pb.Event(load=_encode_load(event, key_of(event.key)))
        case msg.PrefixCacheReset():
            reset = pb.PrefixCacheReset(key=key_of(event.key), num_blocks=event.num_blocks)
            return pb.Event(prefix_cache_reset=reset)
        case msg.Drained():
            num_aborted = event.num_aborted_requests
            return pb.Event(drained=pb.Drained(key=key_of(event.key), num_aborted_requests=num_aborted))
        case msg.ExecutorSwitched():
            reason = None if event.problem is None else _encode_problem(event.problem)
            switched = pb.ExecutorSwitched(key=key_of(event.key), epoch=event.epoch, problem=reason)
            return pb.Event(executor_switched=switched)
        case msg.ProfileReply():
            return pb.Event(profile=_encode_profile_reply(event, key_of(event.key)))


def decode_event(message: pb.Event) -> msg.Event:
    """An event of the engine."""
    match message.WhichOneof("event"):
        case "step":
            return _decode_step(message.step)
        case "state":
            state = message.state
            return msg.EngineState(
                state.serving, state.max_model_len, state.vocab_size, state.weights_fingerprint
            )
        case "api_keys":
            return msg.ApiKeys(tuple(map(_decode_key, message.api_keys.keys)))
        case "accepted":
            return msg.Accepted(message.accepted.key, tuple(message.accepted.sequence_ids))
        case "refused":
            return msg.Refused(message.refused.key, _decode_problem(message.refused.problem))
        case "load":
            return _decode_load(message.load)
        case "prefix_cache_reset":
            reset = message.prefix_cache_reset
            return msg.PrefixCacheReset(reset.key, reset.num_blocks)
        case "drained":
            return msg.Drained(message.drained.key, message.drained.num_aborted_requests)
        case "executor_switched":
            switched = message.executor_switched
            reason = _decode_problem(switched.problem) if switched.HasField("problem") else None
            return msg.ExecutorSwitched(switched.key, switched.epoch, reason)
        case "profile":
            return _decode_profile_reply(message.profile)
    raise FrameError("an event that says nothing")


def _decode_key(message: pb.ApiKey) -> msg.ApiKey:
    return msg.ApiKey(message.sha256, message.tenant, message.shares_prefix_cache, message.is_admin)


def _encode_problem(problem: msg.Problem) -> pb.Problem:
    return pb.Problem(
        code=int(problem.code),
        description=problem.description,
        field=problem.field,
        retry_seconds=problem.retry_seconds,
    )


def _decode_problem(message: pb.Problem) -> msg.Problem:
    try:
        code = msg.Code(message.code)
    except ValueError as error:
        raise FrameError(f"a problem of code {message.code}") from error
    return msg.Problem(code, message.description, message.field, message.retry_seconds)


def _encode_profile_reply(reply: msg.ProfileReply, key: int) -> pb.ProfileReply:
    message = pb.ProfileReply(key=key)
    if reply.problem is not None:
        message.problem.CopyFrom(_encode_problem(reply.problem))
    if reply.profile is not None:
        message.profile.CopyFrom(encode_profile(reply.profile, admin_pb2.StopProfileResponse))
    return message


def _decode_profile_reply(message: pb.ProfileReply) -> msg.ProfileReply:
    problem = _decode_problem(message.problem) if message.HasField("problem") else None
    profile = decode_profile(message.profile) if message.HasField("profile") else None
    return msg.ProfileReply(message.key, problem, profile)


def _encode_load(reply: msg.LoadReply, key: int) -> pb.LoadReply:
    load = admin_pb2.Load(
        **{name: getattr(reply, name) for name in _LOAD_COUNTS},
        step_stats=None if reply.step_means is None else admin_pb2.StepStats(**asdict(reply.step_means)),
        step_totals=None if reply.step_totals is None else admin_pb2.StepTotals(**asdict(reply.step_totals)),
    )
    return pb.LoadReply(key=key, load=load)


def _decode_load(message: pb.LoadReply) -> msg.LoadReply:
    load = message.load
    return msg.LoadReply(
        message.key,
        **{name: getattr(load, name) for name in _LOAD_COUNTS},
        step_means=_times(load.step_stats, msg.StepMeans) if load.HasField("step_stats") else None,
        step_totals=_times(load.step_totals, msg.StepTotals) if load.HasField("step_totals") else None,
    )


def _times(message: Any, kind: type[Any]) -> Any:
    return kind(*(getattr(message, entry.name) for entry in fields(kind)))


def _encode_step(message: pb.StepBatch, batch: msg.StepBatch, key_of: Callable[[int], int]) -> None:
    # Filled in place: there is one each step, and a message given to another is copied.
    message.time, message.step_id = batch.time, batch.step_id
    if batch.tokens is not None:
        _encode_tokens(message.tokens, batch.tokens)
    for started in batch.started:
        message.started.add(key=key_of(started.key), num_cached_tokens=started.num_cached_tokens)
    for end in batch.ended:
        if isinstance(end, msg.Failed):
            message.ended.add(key=key_of(end.key), problem=_encode_problem(end.problem))
        else:
            message.ended.add(key=key_of(end.key), num_preemptions=end.num_preemptions)


def _decode_step(message: pb.StepBatch) -> msg.StepBatch:
    return msg.StepBatch(
        message.time,
        tuple(msg.Started(started.key, started.num_cached_tokens) for started in message.started),
        _decode_tokens(message.tokens) if message.HasField("tokens") else None,
        tuple(
            msg.Failed(end.key, _decode_problem(end.problem))
            if end.HasField("problem")
            else msg.Ended(end.key, end.num_preemptions)
            for end in message.ended
        ),
        message.step_id,
    )


def _encode_tokens(message: pb.TokenBatch, tokens: msg.TokenBatch) -> None:
    message.SetInParent()  # even where there are none
    message.sequence_ids = tokens.sequence_ids.astype(_INT64, copy=False).tobytes()
    message.token_ids = pack_int32(tokens.token_ids)
    message.finishes = tokens.finishes.tobytes()
    for column, entry in tokens.logprobs.items():
        message.logprobs.add(
            column=column,
            logprob=entry.logprob,
            rank=entry.rank,
            alternative_ids=pack_int32(entry.alternative_ids),
            alternative_logprobs=pack_float32(entry.alternative_logprobs),
        )
    for sequence_id, piece in tokens.prompt_logprobs:
        message.prompt_logprobs.add(
            sequence_id=sequence_id,
            first_position=piece.first_position,
            logprobs=pack_float32(piece.logprobs),
            ranks=pack_int32(piece.ranks),
            alternative_ids=pack_int32(piece.alternative_ids),
            alternative_logprobs=pack_float32(piece.alternative_logprobs),
        )


def _decode_tokens(message: pb.TokenBatch) -> msg.TokenBatch:
    sequence_ids = decode_column(message.sequence_ids, _INT64)
    token_ids = decode_column(message.token_ids, _INT32)
    finishes = decode_column(message.finishes, _INT8)
    if not len(sequence_ids) == len(token_ids) == len(finishes):
        raise FrameError("columns of tokens that differ in length")
    if len(finishes) and not 0 <= finishes.min() <= finishes.max() <= max(Finish):
        raise FrameError("an unknown finish")
    logprobs = {
        entry.column: msg.TokenLogprobs(
            entry.logprob,
            entry.rank,
            decode_column(entry.alternative_ids, _INT32),
            decode_column(entry.alternative_logprobs, _FLOAT32),
        )
        for entry in message.logprobs
    }
    prompts = tuple((piece.sequence_id, _decode_prompt(piece)) for piece in message.prompt_logprobs)
    return msg.TokenBatch(sequence_ids, token_ids, finishes, logprobs, prompts)


def _decode_prompt(piece: pb.PromptLogprobs) -> msg.PromptLogprobs:
    logprobs, ranks = decode_column(piece.logprobs, _FLOAT32), decode_column(piece.ranks, _INT32)
    ids, alternatives = (
        decode_column(piece.alternative_ids, _INT32),
        decode_column(piece.alternative_logprobs, _FLOAT32),
    )
    num = len(logprobs)
    if not num or len(ranks) != num or len(ids) != len(alternatives) or len(ids) % num:
        raise FrameError("prompt log-probabilities that differ in length")
    shape = (num, len(ids) // num)
    return msg.PromptLogprobs(
        piece.first_position, logprobs, ranks, ids.reshape(shape), alternatives.reshape(shape)
    )
