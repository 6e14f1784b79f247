"""Frames between engine and workers: what goes in comes out, and nothing else gets in."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoserve.profiles import Profile, Span
from nanoserve.scheduler.v1 import worker_pb2 as pb
from scheduler_svc import messages as msg
from scheduler_svc.core.request import Finish, Guide, Request, Sampling
from scheduler_svc.framing import MAX_FRAME_BYTES, FrameError, FrameReader, frame
from scheduler_svc.worker_commands import decode_command, decode_frame, encode_command
from scheduler_svc.worker_events import decode_event, encode_event

INT32 = st.integers(-(2**31), 2**31 - 1)
COUNTS = st.integers(0, 2**31 - 1)
KEYS = st.integers(0, 2**40 - 1)
REALS = st.floats(allow_nan=False)
REALS32 = st.floats(allow_nan=False, width=32)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def arrays(kind: Any, elements: Any, size: int) -> Any:
    return st.lists(elements, min_size=size, max_size=size).map(lambda values: np.array(values, kind))


@st.composite
def requests(draw: Any) -> Request:
    return Request(
        request_id=draw(TEXTS),
        prompt_token_ids=draw(arrays(np.int32, COUNTS, draw(st.integers(1, 20)))),
        max_tokens=draw(COUNTS),
        seed=draw(st.integers(0, 2**64 - 1)),
        n=draw(COUNTS),
        sampling=draw(
            st.builds(
                Sampling,
                *(REALS, COUNTS, REALS, REALS, REALS, REALS, REALS),
                logit_bias=st.lists(st.tuples(COUNTS, REALS), max_size=4).map(tuple),
                logprobs=st.none() | st.integers(0, 20),
                prompt_logprobs=st.none() | st.integers(0, 20),
            )
        ),
        min_tokens=draw(COUNTS),
        end_token_ids=tuple(draw(st.lists(COUNTS, max_size=4))),
        priority=draw(INT32),
        cache_salt=draw(st.binary(max_size=8)),
        resumed=tuple(
            draw(
                st.lists(
                    st.none() | st.integers(0, 5).flatmap(lambda n: arrays(np.int32, COUNTS, n)), max_size=3
                )
            )
        ),
        guide=draw(st.none() | st.builds(Guide, st.sampled_from(["regex", "choice"]), st.text(max_size=9))),
    )


COMMANDS = st.one_of(
    st.builds(msg.Submit, KEYS, requests(), TEXTS),
    st.builds(msg.Abort, KEYS, st.none() | st.lists(COUNTS, min_size=1, max_size=4).map(tuple)),
    st.builds(msg.LoadQuery, KEYS),
    st.builds(msg.ResetPrefixCache, KEYS),
    st.builds(msg.Drain, KEYS, st.none() | REALS),
    st.builds(msg.StartProfile, KEYS, INT32),
    st.builds(msg.SwitchExecutor, KEYS, st.text(max_size=20)),
    st.builds(msg.StopProfile, KEYS),
)
PROBLEMS = st.builds(msg.Problem, st.sampled_from(msg.Code), TEXTS, TEXTS, REALS)


@st.composite
def token_logprobs(draw: Any) -> msg.TokenLogprobs:
    size = draw(st.integers(0, 5))
    ids, logprobs = draw(arrays(np.int32, COUNTS, size)), draw(arrays(np.float32, REALS32, size))
    return msg.TokenLogprobs(draw(REALS32), draw(COUNTS), ids, logprobs)


@st.composite
def prompt_logprobs(draw: Any) -> msg.PromptLogprobs:
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    return msg.PromptLogprobs(
        draw(COUNTS),
        draw(arrays(np.float32, REALS32, rows)),
        draw(arrays(np.int32, COUNTS, rows)),
        draw(arrays(np.int32, COUNTS, rows * columns)).reshape(rows, columns),
        draw(arrays(np.float32, REALS32, rows * columns)).reshape(rows, columns),
    )


@st.composite
def token_batches(draw: Any) -> msg.TokenBatch:
    size = draw(st.integers(0, 12))
    asking = draw(st.sets(st.integers(0, size - 1), max_size=3)) if size else set()
    return msg.TokenBatch(
        draw(arrays(np.int64, st.integers(0, 2**62), size)),
        draw(arrays(np.int32, COUNTS, size)),
        draw(arrays(np.int8, st.sampled_from(Finish), size)),
        {column: draw(token_logprobs()) for column in asking},
        tuple(draw(st.lists(st.tuples(COUNTS, prompt_logprobs()), max_size=2))),
    )


TIMES = (REALS,) * 6
SPANS = st.builds(Span, TEXTS, TEXTS, *(COUNTS,) * 5)
PROFILES = st.builds(Profile, TEXTS, COUNTS, st.lists(SPANS, max_size=3).map(tuple), st.binary(max_size=8))
EVENTS = st.one_of(
    st.builds(msg.EngineState, st.booleans(), COUNTS, COUNTS, TEXTS),
    st.builds(
        msg.ApiKeys,
        st.lists(
            st.builds(msg.ApiKey, st.binary(max_size=32), TEXTS, st.booleans(), st.booleans()), max_size=3
        ).map(tuple),
    ),
    st.builds(msg.Accepted, KEYS, st.lists(st.integers(0, 2**62), max_size=4).map(tuple)),
    st.builds(msg.Refused, KEYS, PROBLEMS),
    st.builds(
        msg.StepBatch,
        REALS,
        st.lists(st.builds(msg.Started, KEYS, COUNTS), max_size=3).map(tuple),
        st.none() | token_batches(),
        st.lists(st.builds(msg.Ended, KEYS, COUNTS) | st.builds(msg.Failed, KEYS, PROBLEMS), max_size=3).map(
            tuple
        ),
        COUNTS,
    ),
    st.builds(
        msg.LoadReply,
        KEYS,
        *(COUNTS,) * 16,
        st.none() | st.builds(msg.StepMeans, *TIMES),
        st.none() | st.builds(msg.StepTotals, *TIMES),
        COUNTS,
        st.booleans(),
        st.booleans(),
    ),
    st.builds(msg.PrefixCacheReset, KEYS, COUNTS),
    st.builds(msg.Drained, KEYS, COUNTS),
    st.builds(msg.ExecutorSwitched, KEYS, st.integers(0, 2**64 - 1), st.none() | PROBLEMS),
    st.builds(msg.ProfileReply, KEYS, st.none() | PROBLEMS, st.none() | PROFILES),
)


def same(one: Any, other: Any) -> bool:
    """Whether two messages are equal, arrays by type, shape and content."""
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    if dataclasses.is_dataclass(one):
        names = [entry.name for entry in dataclasses.fields(one)]
        return type(one) is type(other) and all(
            same(getattr(one, name), getattr(other, name)) for name in names
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


@given(COMMANDS)
def test_a_command_comes_out_as_it_went_in(command: msg.Command):
    data = pb.WorkerFrame(commands=[encode_command(command)]).SerializeToString()
    (message,) = decode_frame(pb.WorkerFrame, data).commands
    assert same(decode_command(message, message.key), command)


@given(EVENTS)
def test_an_event_comes_out_as_it_went_in(event: msg.Event):
    data = pb.EngineFrame(events=[encode_event(event, lambda key: key)]).SerializeToString()
    (message,) = decode_frame(pb.EngineFrame, data).events
    assert same(decode_event(message), event)


@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(0, 200), max_size=8))
def test_messages_are_cut_out_of_the_stream_however_it_is_cut(messages: list[bytes], cuts: list[int]):
    stream = b"".join(map(frame, messages))
    ends = [*sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    reader, found, begin = FrameReader(), [], 0
    for end in ends:
        found += reader.feed(stream[begin:end])
        begin = end
    assert found == messages


def test_a_frame_that_is_too_long_is_refused_before_it_is_read():
    with pytest.raises(FrameError, match="longer"):
        list(FrameReader().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "little")))
    assert list(FrameReader().feed(MAX_FRAME_BYTES.to_bytes(4, "little"))) == []


def mutate(data: bytes, position: int, value: int) -> bytes:
    position %= len(data) + 1
    return data[:position] + bytes([value]) + data[position + 1 :]


@given(
    st.binary(max_size=60)
    | st.builds(
        mutate,
        st.builds(lambda c: pb.WorkerFrame(commands=[encode_command(c)]).SerializeToString(), COMMANDS),
        COUNTS,
        st.integers(0, 255),
    )
)
def test_a_damaged_worker_frame_is_a_frame_error_or_other_commands(data: bytes):
    try:
        for message in decode_frame(pb.WorkerFrame, data).commands:
            decode_command(message, 1)
    except FrameError:
        pass


@given(
    st.binary(max_size=60)
    | st.builds(
        mutate,
        st.builds(
            lambda e: pb.EngineFrame(events=[encode_event(e, lambda key: key)]).SerializeToString(), EVENTS
        ),
        COUNTS,
        st.integers(0, 255),
    )
)
def test_a_damaged_engine_frame_is_a_frame_error_or_other_events(data: bytes):
    try:
        for message in decode_frame(pb.EngineFrame, data).events:
            decode_event(message)
    except FrameError:
        pass


@pytest.mark.parametrize(
    "event",
    [
        pb.Event(),
        pb.Event(refused=pb.Refused(problem=pb.Problem(code=1))),
        pb.Event(step=pb.StepBatch(tokens=pb.TokenBatch(sequence_ids=b"1234567"))),
        pb.Event(step=pb.StepBatch(tokens=pb.TokenBatch(sequence_ids=bytes(8), token_ids=bytes(4)))),
        pb.Event(
            step=pb.StepBatch(
                tokens=pb.TokenBatch(sequence_ids=bytes(8), token_ids=bytes(4), finishes=b"\x7f")
            )
        ),
        pb.Event(step=pb.StepBatch(tokens=pb.TokenBatch(prompt_logprobs=[pb.PromptLogprobs()]))),
    ],
)
def test_an_event_that_makes_no_sense_is_a_frame_error(event: pb.Event):
    with pytest.raises(FrameError):
        decode_event(event)
