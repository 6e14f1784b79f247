"""The `resume` field of a request: what a client holds of a generation whose stream broke, checked and taken in."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from nanoserve.v1 import inference_pb2 as pb
from scheduler_svc.core.request import Int32Array
from scheduler_svc.errors import InvalidRequest
from scheduler_svc.output import Output
from scheduler_svc.validation import check_token_ids

# More tokens are taken in by a thread, so that streams go on meanwhile.
_MAX_TOKENS_ON_LOOP = 2048


@dataclass(frozen=True, slots=True)
class OutputLimits:
    """When the outputs of a request are over."""

    end_token_ids: Collection[int]
    max_tokens: int
    vocab_size: int


def resumed_seed(request: pb.GenerateRequest) -> int:
    """The seed of a generation that is resumed; InvalidRequest where the request names another."""
    seed = request.resume.seed
    if request.sampling.HasField("seed") and request.sampling.seed != seed:
        raise InvalidRequest("resume.seed", f"is {seed}, but sampling.seed is {request.sampling.seed}")
    return seed


async def resume_outputs(
    resume: pb.ResumeParams, prompt_digest: bytes, outputs: Sequence[Output], limits: OutputLimits
) -> tuple[Int32Array | None, ...]:
    """Takes in what the client holds; returns it for the core, by output. InvalidRequest, naming the field."""
    if resume.prompt_digest != prompt_digest:
        raise InvalidRequest("resume.prompt_digest", "is another: the prompt comes to other token ids now")
    if len(resume.outputs) != len(outputs):
        raise InvalidRequest("resume.outputs", f"are {len(resume.outputs)}, must be {len(outputs)}")
    num_tokens = sum(len(held.token_ids) for held in resume.outputs)
    if num_tokens > limits.max_tokens * len(outputs):
        raise InvalidRequest("resume.outputs", f"have {num_tokens} tokens, more than max_tokens")
    if num_tokens > _MAX_TOKENS_ON_LOOP:
        return await asyncio.to_thread(_take_all, resume, outputs, limits)
    return _take_all(resume, outputs, limits)


def _take_all(
    resume: pb.ResumeParams, outputs: Sequence[Output], limits: OutputLimits
) -> tuple[Int32Array | None, ...]:
    return tuple(
        _take(f"resume.outputs[{index}]", held, output, limits)
        for index, (held, output) in enumerate(zip(resume.outputs, outputs, strict=True))
    )


def _take(path: str, held: pb.ResumedOutput, output: Output, limits: OutputLimits) -> Int32Array | None:
    """Takes one output in; returns its tokens, None where it is over with them."""
    token_ids = check_token_ids(f"{path}.token_ids", held.token_ids, limits.vocab_size)
    try:
        text = output.resume(held.token_ids, limits.end_token_ids, limits.max_tokens, is_over=held.finished)
    except ValueError as error:
        raise InvalidRequest(f"{path}.token_ids", str(error)) from error
    num_bytes = len(text.encode())
    if not held.finished and num_bytes != held.text_length:
        rule = f"is {held.text_length}, but the text of these tokens has {num_bytes} bytes"
        raise InvalidRequest(f"{path}.text_length", rule)
    return None if output.finished is not None else token_ids
