"""Verdicts: whatever is lost, repeated or changed is found, and nothing else is blamed."""

from collections.abc import Callable
from dataclasses import replace

import grpc
import pytest

from nanoserve_client.chaos.cases import Case
from nanoserve_client.chaos.gaps import choice_gap
from nanoserve_client.chaos.references import Reference
from nanoserve_client.chaos.streams import Boundary, Seen
from nanoserve_client.chaos.verdicts import Kind, Rules, judge
from nanoserve_client.errors import Internal, ResourceExhausted, Unavailable
from nanoserve_client.options import GenerateOptions
from nanoserve_client.results import (
    Completion,
    CompletionOutput,
    FinishReason,
    Timing,
    TokenLogprob,
    Usage,
)

IDS = (5, 6, 7, 8)
TEXTS = ("", "a", "ab", "abc", "abcd")
EXACT = Rules()
NEAR = Rules(max_gap=1e-4, logprob_tolerance=1e-3)


def logprob(token: int, value: float = -1.0) -> TokenLogprob:
    return TokenLogprob(token, value, 1, ())


def make_output(ids: tuple[int, ...] = IDS, values: tuple[float, ...] = (-1.0,) * 4) -> CompletionOutput:
    entries = tuple(logprob(token, value) for token, value in zip(ids, values, strict=True))
    return CompletionOutput(0, TEXTS[len(ids)], ids, FinishReason.LENGTH, None, entries)


def make_completion(output: CompletionOutput) -> Completion:
    usage = Usage(3, 0, len(output.token_ids), 0)
    return Completion("r", (output,), 3, 0, 9, b"d", None, usage, Timing(0, 0, 0))


def make_reference(temperature: float = 0.0) -> Reference:
    case = Case(0, "seeded", "x", GenerateOptions(temperature=temperature, seed=9))
    return Reference(case, make_completion(make_output()), (TEXTS,))


def make_seen(output: CompletionOutput | None = None) -> Seen:
    output = output or make_output()
    ids = output.token_ids
    return Seen(
        completion=make_completion(output),
        boundaries=[Boundary(0, k, TEXTS[k]) for k in range(1, len(ids) + 1)],
        token_ids={0: list(ids)},
        texts={0: output.text},
        logprobs={0: list(output.logprobs or ())},
    )


def test_the_same_again_is_identical():
    assert judge(make_reference(), make_seen(), EXACT).kind is Kind.IDENTICAL


def cut_short(seen: Seen) -> None:
    seen.completion = make_completion(make_output(IDS[:3], (-1.0,) * 3))
    seen.token_ids[0].pop()
    seen.boundaries.pop()


def repeat_a_token(seen: Seen) -> None:
    seen.token_ids[0].insert(2, IDS[1])


def change_a_token(seen: Seen) -> None:
    seen.token_ids[0][2] = 99


def add_a_token(seen: Seen) -> None:
    seen.token_ids[0].append(9)


def run_ahead_with_text(seen: Seen) -> None:
    seen.boundaries[1] = Boundary(0, 2, "abc")


def add_an_output(seen: Seen) -> None:
    seen.token_ids[1] = [5]


def change_the_result(**changes: object) -> Callable[[Seen], None]:
    def change(seen: Seen) -> None:
        assert seen.completion is not None
        output = replace(seen.completion.outputs[0], **changes)
        seen.completion = replace(seen.completion, outputs=(output,))

    return change


def change_the_count(seen: Seen) -> None:
    assert seen.completion is not None
    seen.completion = replace(seen.completion, usage=Usage(3, 0, 5, 0))


def never_end(seen: Seen) -> None:
    seen.completion = None


def break_off(seen: Seen) -> None:
    seen.completion, seen.error = None, Unavailable(grpc.StatusCode.UNAVAILABLE, "gone")


def leave(seen: Seen) -> None:
    seen.completion, seen.has_left = None, True


@pytest.mark.parametrize(
    "damage",
    [
        cut_short,
        repeat_a_token,
        change_a_token,
        add_a_token,
        run_ahead_with_text,
        add_an_output,
        change_the_result(text="abce"),
        change_the_result(finish_reason=FinishReason.STOP),
        change_the_result(stop="d"),
        change_the_result(logprobs=None),
        change_the_result(logprobs=tuple(map(logprob, IDS[:3]))),
        change_the_result(logprobs=tuple(logprob(token, -1.1) for token in IDS)),
        change_the_count,
        never_end,
        break_off,
    ],
)
@pytest.mark.parametrize("rules", [EXACT, NEAR])
def test_every_damage_is_found(damage: Callable[[Seen], None], rules: Rules):
    seen = make_seen()
    damage(seen)
    assert judge(make_reference(), seen, rules).kind is Kind.WRONG


def test_only_exact_rules_see_rounding_in_a_log_probability():
    seen = make_seen(make_output(values=(-1.0, -1.00001, -1.0, -1.0)))
    assert judge(make_reference(), seen, EXACT).kind is Kind.WRONG
    assert judge(make_reference(), seen, NEAR).kind is Kind.IDENTICAL


def test_a_client_that_left_is_judged_by_what_it_had():
    seen = make_seen()
    leave(seen)
    assert judge(make_reference(), seen, EXACT).kind is Kind.LEFT
    change_a_token(seen)
    assert judge(make_reference(), seen, EXACT).kind is Kind.WRONG


def test_a_refusal_has_a_time_to_come_back_and_no_tokens():
    refusal = ResourceExhausted(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", retry_after_seconds=1.0)
    assert judge(make_reference(), Seen(error=refusal), EXACT).kind is Kind.REFUSED
    late = make_seen()
    late.completion, late.error = None, refusal
    assert judge(make_reference(), late, EXACT).kind is Kind.WRONG
    timeless = ResourceExhausted(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
    assert judge(make_reference(), Seen(error=timeless), EXACT).kind is Kind.WRONG


def test_an_internal_end_is_told_apart_unless_what_came_before_is_wrong():
    seen = Seen(error=Internal(grpc.StatusCode.INTERNAL, "id"), token_ids={0: [5]})
    assert judge(make_reference(), seen, EXACT).kind is Kind.BLAMED
    seen.token_ids[0] = [6]
    assert judge(make_reference(), seen, EXACT).kind is Kind.WRONG


@pytest.mark.parametrize(("other", "kind"), [(-1.00005, Kind.NEAR_TIE), (-1.01, Kind.WRONG)])
def test_a_greedy_stream_may_differ_from_where_two_tokens_were_as_close_as_rounding(other: float, kind: Kind):
    seen = make_seen(make_output((5, 6, 99, 8), (-1.0, -1.0, other, -1.0)))
    assert judge(make_reference(), seen, NEAR).kind is kind
    assert judge(make_reference(), seen, EXACT).kind is Kind.WRONG


def test_a_near_tie_excuses_no_stream_that_came_to_no_end():
    for damage, kind in ((never_end, Kind.WRONG), (break_off, Kind.WRONG), (leave, Kind.NEAR_TIE)):
        seen = make_seen(make_output((5, 6, 99, 8)))
        damage(seen)
        assert judge(make_reference(), seen, NEAR).kind is kind
    blamed = make_seen(make_output((5, 6, 99, 8)))
    blamed.completion, blamed.error = None, Internal(grpc.StatusCode.INTERNAL, "id")
    assert judge(make_reference(), blamed, NEAR).kind is Kind.NEAR_TIE


@pytest.mark.parametrize("index", [0, 1])
def test_the_gap_of_a_seeded_choice_counts_the_noise_of_both_candidates(index: int):
    torch = pytest.importorskip("torch")
    from executor_svc.noise import gumbel_noise, seed_as_int64
    from scheduler_svc.core.request import sequence_seed

    temperature, position = 0.5, 3 + 2
    seed = seed_as_int64(sequence_seed(9, index))
    noise = gumbel_noise(torch.tensor([seed]), torch.tensor([position]), 128)[0]
    tie = -1.0 + temperature * float(noise[7] - noise[99])
    reference, seen = (
        make_reference(temperature),
        make_seen(make_output((5, 6, 99, 8), (-1.0, -1.0, tie, -1.0))),
    )
    output = replace(make_output(), index=index)
    reference = replace(reference, completion=replace(reference.completion, outputs=(output,)))
    seen.token_ids, seen.logprobs = {index: seen.token_ids[0]}, {index: seen.logprobs[0]}
    assert choice_gap(reference, seen) == pytest.approx(0.0, abs=1e-5)


def test_filters_and_penalties_hide_the_gap():
    reference = make_reference()
    seen = make_seen(make_output((5, 6, 99, 8)))
    assert choice_gap(reference, seen) == 0.0
    for name in ("top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty"):
        options = replace(reference.case.options, **{name: 1})
        hidden = replace(reference, case=replace(reference.case, options=options))
        assert choice_gap(hidden, seen) is None
