"""Whether what a client saw is what it would have seen undisturbed: token by token, text, ends, log-probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from nanoserve_client.chaos.gaps import choice_gap
from nanoserve_client.chaos.references import Reference
from nanoserve_client.chaos.streams import Seen, is_refusal
from nanoserve_client.errors import Internal
from nanoserve_client.results import CompletionOutput, TokenLogprob


class Kind(StrEnum):
    """What became of a stream."""

    IDENTICAL = "identical"
    LEFT = "left"
    """Its client went; what had come till then is identical."""
    REFUSED = "refused"
    """Turned away with a time to come back, and nothing else."""
    NEAR_TIE = "near tie"
    """It differs from where two candidates were as close as rounding, and came to an end."""
    BLAMED = "blamed"
    """INTERNAL, which a fault may bring upon one request."""
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a stream, and why where it is WRONG or NEAR_TIE."""

    kind: Kind
    reason: str = ""
    gap: float | None = None
    """Between the two best candidates where it first differs, if that is known."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What counts as equal: `max_gap` None for tokens that nothing may change, such as the virtual executor's."""

    max_gap: float | None = None
    logprob_tolerance: float | None = None
    """How far log-probabilities of chosen tokens may be apart: on a real device batching changes the order of sums.
    None: they are equal to the bit, and so are ranks and alternatives."""


def judge(reference: Reference, seen: Seen, rules: Rules) -> Verdict:
    """The verdict on one stream."""
    if is_refusal(seen.error) and not seen.boundaries:
        return Verdict(Kind.REFUSED)
    if problem := _boundary_problem(reference, seen):
        gap = choice_gap(reference, seen) if rules.max_gap is not None else None
        is_near = gap is not None and rules.max_gap is not None and gap <= rules.max_gap
        return Verdict(Kind.NEAR_TIE if is_near and _has_ended(seen) else Kind.WRONG, problem, gap)
    if isinstance(seen.error, Internal):
        return Verdict(Kind.BLAMED, str(seen.error))
    if seen.error is not None:
        return Verdict(Kind.WRONG, f"{type(seen.error).__name__}: {seen.error}")
    if seen.completion is None:
        return Verdict(Kind.LEFT) if seen.has_left else Verdict(Kind.WRONG, "it never ended")
    problem = _completion_problem(reference, seen, rules)
    return Verdict(Kind.WRONG, problem) if problem else Verdict(Kind.IDENTICAL)


def _has_ended(seen: Seen) -> bool:
    """Whether it came to one of the ends that a stream may come to."""
    return seen.completion is not None or seen.has_left or isinstance(seen.error, Internal)


def _boundary_problem(reference: Reference, seen: Seen) -> str:
    """What is wrong with the tokens that came, or with where the text stood after a message."""
    outputs = reference.completion.outputs
    for index, ids in seen.token_ids.items():
        if index >= len(outputs):
            return f"output {index} was not asked for"
        if problem := _first_difference(outputs[index].token_ids, ids):
            return f"output {index}: {problem}"
    for boundary in seen.boundaries:
        texts, output = reference.prefix_texts[boundary.index], outputs[boundary.index]
        whole = boundary.num_tokens == len(output.token_ids)
        expected = output.text if whole else texts[boundary.num_tokens]
        if boundary.text != expected:
            where = f"output {boundary.index}, after {boundary.num_tokens} tokens"
            return f"{where}: the text is {boundary.text[-40:]!r}, not {expected[-40:]!r}"
    return ""


def _first_difference(expected: Sequence[int], got: Sequence[int]) -> str:
    """Where tokens that came differ from those expected; fewer are no difference."""
    for position, (wanted, token) in enumerate(zip(expected, got, strict=False)):
        if wanted != token:
            return f"token {position} is {token}, not {wanted}"
    return f"{len(got)} tokens instead of {len(expected)}" if len(got) > len(expected) else ""


def _completion_problem(reference: Reference, seen: Seen, rules: Rules) -> str:
    expected, got = reference.completion, seen.completion
    assert got is not None
    names = ("num_prompt_tokens", "seed", "prompt_digest")
    for name in names:
        if getattr(got, name) != getattr(expected, name):
            return f"{name} is {getattr(got, name)}, not {getattr(expected, name)}"
    if got.usage.num_output_tokens != expected.usage.num_output_tokens:
        wanted = expected.usage.num_output_tokens
        return f"usage counts {got.usage.num_output_tokens} output tokens, not {wanted}"
    if len(got.outputs) != len(expected.outputs):
        return f"{len(got.outputs)} outputs instead of {len(expected.outputs)}"
    for wanted_output, output in zip(expected.outputs, got.outputs, strict=True):
        if problem := _output_problem(wanted_output, output, rules):
            return f"output {output.index}: {problem}"
    return _logprob_problem(expected.prompt_logprobs, got.prompt_logprobs, rules)


def _output_problem(expected: CompletionOutput, got: CompletionOutput, rules: Rules) -> str:
    if got.token_ids != expected.token_ids:
        return f"{len(got.token_ids)} tokens instead of {len(expected.token_ids)}"
    for name in ("text", "finish_reason", "stop"):
        if getattr(got, name) != getattr(expected, name):
            return f"{name} is {getattr(got, name)!r}, not {getattr(expected, name)!r}"
    return _logprob_problem(expected.logprobs, got.logprobs, rules)


def _logprob_problem(
    expected: Sequence[TokenLogprob | None] | None, got: Sequence[TokenLogprob | None] | None, rules: Rules
) -> str:
    if expected is None or got is None:
        return "" if expected is got else "log-probabilities are missing"
    if len(expected) != len(got):
        return f"{len(got)} log-probabilities instead of {len(expected)}"
    for position, (wanted, entry) in enumerate(zip(expected, got, strict=True)):
        if wanted is None or entry is None:
            continue
        if not _agree(wanted, entry, rules.logprob_tolerance):
            return f"log-probability {position} is {entry}, not {wanted}"
    return ""


def _agree(one: TokenLogprob, other: TokenLogprob, tolerance: float | None) -> bool:
    if tolerance is None:
        return one == other
    return one.token_id == other.token_id and abs(one.logprob - other.logprob) <= tolerance
