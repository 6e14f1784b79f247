"""Messages to events and results: nothing is lost, doubled or mixed up."""

from dataclasses import dataclass

import fake_server
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoserve.v1 import inference_pb2 as pb
from nanoserve_client import FinishReason, ProtocolError, TokenAlternative, TokenLogprob
from nanoserve_client.events import CompletionBuilder

LOGPROB = st.builds(
    lambda token, rank, alternatives: TokenLogprob(
        token, -0.5 * rank, rank, tuple(TokenAlternative(t, -0.25 * i) for i, t in enumerate(alternatives))
    ),
    st.integers(0, 99),
    st.integers(1, 99),
    st.lists(st.integers(0, 99), max_size=3),
)


@dataclass(frozen=True)
class Case:
    """A stream as sent, and the pieces that it was made from."""

    pieces: tuple[list[tuple[str, list[TokenLogprob]]], ...]
    prompt: list[TokenLogprob]
    sent: list[pb.GenerateResponse]


def to_proto(entry: TokenLogprob) -> pb.TokenLogprob:
    alternatives = [pb.TokenAlternative(token_id=a.token_id, logprob=a.logprob) for a in entry.alternatives]
    return pb.TokenLogprob(
        token_id=entry.token_id, logprob=entry.logprob, rank=entry.rank, alternatives=alternatives
    )


@st.composite
def streams(draw: st.DrawFn) -> Case:
    piece = st.tuples(st.text(max_size=4), st.lists(LOGPROB, max_size=3))
    pieces = draw(st.lists(st.lists(piece, max_size=4), min_size=1, max_size=4))
    prompt = draw(st.lists(LOGPROB, min_size=1, max_size=6))
    cut = draw(st.integers(1, len(prompt)))
    outputs: list[list[fake_server.Event]] = []
    for index, output in enumerate(pieces):
        deltas: list[fake_server.Event] = [
            pb.GenerateDelta(
                index=index,
                text=text,
                token_ids=[entry.token_id for entry in entries],
                logprobs=map(to_proto, entries),
            )
            for text, entries in output
        ]
        end = pb.GenerateFinished(index=index, finish_reason=pb.FINISH_REASON_STOP, stop_token_id=index)
        outputs.append([*deltas, end])
    events: list[fake_server.Event] = [
        pb.GenerateStarted(num_prompt_tokens=len(prompt) + 1, seed=2**63 + 1, prompt_digest=b"d" * 16)
    ]
    for first, part in ((1, prompt[:cut]), (1 + cut, prompt[cut:])):
        if part:
            events.append(pb.GeneratePrompt(first_position=first, logprobs=map(to_proto, part)))
    while any(outputs):  # interleave, each output in its own order
        events.append(draw(st.sampled_from([o for o in outputs if o])).pop(0))
    events.append(pb.GenerateCompleted(usage=pb.Usage(num_output_tokens=5)))
    return Case(tuple(pieces), prompt, fake_server.messages(*events))


def fold(sent: list[pb.GenerateResponse], n: int | None = None) -> CompletionBuilder:
    builder = CompletionBuilder(n=n, logprobs=True, prompt_logprobs=True)
    for message in sent:
        builder.read(message)
    builder.end()
    return builder


@given(streams())
def test_each_output_gets_its_own_pieces_in_order(case: Case) -> None:
    completion = fold(case.sent).completion()
    assert len(completion.outputs) == len(case.pieces)
    for index, (output, pieces) in enumerate(zip(completion.outputs, case.pieces, strict=True)):
        logprobs = tuple(entry for _, entries in pieces for entry in entries)
        assert output.text == "".join(text for text, _ in pieces)
        assert output.logprobs == logprobs
        assert output.token_ids == tuple(entry.token_id for entry in logprobs)
        assert (output.index, output.finish_reason, output.stop) == (index, FinishReason.STOP, index)
    assert completion.prompt_logprobs == (None, *case.prompt)
    assert completion.seed == 2**63 + 1
    assert completion.usage.num_output_tokens == 5


@given(streams(), st.data())
def test_a_stream_that_lacks_or_doubles_a_message_is_an_error(case: Case, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(case.sent) - 1))
    for broken in (case.sent[:at] + case.sent[at + 1 :], case.sent[: at + 1] + case.sent[at:]):
        with pytest.raises(ProtocolError):
            fold(broken)


@given(streams(), st.data())
def test_a_server_that_numbers_a_broken_stream_well_is_found_out(case: Case, data: st.DataObject) -> None:
    """Without a prompt slice, a `finished`, `started` or `completed` the result would be silently wrong."""
    vital = [i for i, m in enumerate(case.sent) if m.WhichOneof("event") != "delta"]
    at = data.draw(st.sampled_from(vital))
    broken = case.sent[:at] + case.sent[at + 1 :]
    for seq, message in enumerate(broken):
        message.seq = seq
    with pytest.raises(ProtocolError):
        fold(broken, n=len(case.pieces)).completion()


def stream_of(*events: fake_server.Event) -> list[pb.GenerateResponse]:
    return fake_server.messages(pb.GenerateStarted(num_prompt_tokens=1), *events)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(stream_of(pb.GenerateDelta(token_ids=[1])), id="a token without its log-probability"),
        pytest.param(stream_of(pb.GenerateFinished()), id="an unspecified finish reason"),
        pytest.param(stream_of(pb.GenerateStarted()), id="two starts"),
        pytest.param(stream_of(pb.GeneratePrompt(first_position=2)), id="a prompt slice too late"),
        pytest.param(
            stream_of(pb.GenerateFinished(finish_reason=pb.FINISH_REASON_STOP), pb.GenerateDelta(text="x")),
            id="text after the end of an output",
        ),
        pytest.param(stream_of(pb.GenerateCompleted(), pb.GenerateDelta(text="x")), id="text after all"),
        pytest.param([pb.GenerateResponse()], id="no event at all"),
    ],
)
def test_what_contradicts_the_contract_is_an_error(sent: list[pb.GenerateResponse]) -> None:
    with pytest.raises(ProtocolError):
        fold(sent)


def test_log_probabilities_nobody_asked_for_stay_none() -> None:
    builder = CompletionBuilder(n=None, logprobs=False, prompt_logprobs=False)
    for message in fake_server.answer("a", "b"):
        builder.read(message)
    builder.end()
    completion = builder.completion()
    assert completion.outputs[0].logprobs is None
    assert completion.prompt_logprobs is None
    assert (completion.text, completion.token_ids) == ("ab", (100, 101))


def test_the_stop_string_and_the_stop_token_are_told_apart() -> None:
    for stop, field in (("END", "stop_string"), (0, "stop_token_id"), (None, None)):
        finished = pb.GenerateFinished(finish_reason=pb.FINISH_REASON_STOP)
        if field:
            setattr(finished, field, stop)
        builder = CompletionBuilder(n=None, logprobs=False, prompt_logprobs=False)
        for message in stream_of(finished, pb.GenerateCompleted()):
            builder.read(message)
        assert builder.completion().outputs[0].stop == stop
