"""What each field of `resume` does that a client can see; run against the shipped model."""

from collections.abc import Callable
from typing import Any

from contract import Api, refused
from generate_cases import HOT, continued

_SAMPLING = {"temperature": HOT, "seed": 5}
_NUM_DELTAS = 4
Resume = dict[str, Any]


def cut_off(api: Api, sampling: dict[str, Any], **fields: Any) -> Resume:
    """What a client holds whose stream broke behind some deltas."""
    stop = {"max_tokens": 16, "ignore_eos": True}
    stream = api.stream("Generate", text="1, 2, 3,", sampling=sampling, stop=stop, **fields)
    started = next(stream).started
    outputs: list[dict[str, Any]] = [{"token_ids": [], "text_length": 0} for _ in range(sampling.get("n", 1))]
    for _ in range(_NUM_DELTAS):
        delta = next(stream).delta
        outputs[delta.index]["token_ids"] += delta.token_ids
        outputs[delta.index]["text_length"] += len(delta.text.encode())
    stream.cancel()
    return {"seed": started.seed, "prompt_digest": started.prompt_digest, "outputs": outputs}


def goes_on(change: Callable[[Resume], None], field: str) -> Callable[[Api], None]:
    """What is left of a generation is told, and only that; `change` makes of what a client holds what none can."""

    def case(api: Api) -> None:
        whole, resume = continued(api, _SAMPLING), cut_off(api, _SAMPLING)
        held = resume["outputs"][0]["token_ids"]
        assert held == list(whole.token_ids[: len(held)])
        rest = continued(api, {"temperature": HOT}, resume=resume)
        assert rest.token_ids == whole.token_ids[len(held) :]
        assert rest.usage.num_output_tokens == len(whole.token_ids)
        change(resume)
        with refused(field):
            continued(api, {"temperature": HOT}, resume=resume)

    return case


def seed(api: Api) -> None:
    resume = cut_off(api, _SAMPLING)
    rest = continued(api, {"temperature": HOT}, resume=resume)
    other = continued(api, {"temperature": HOT}, resume=resume | {"seed": 6})
    assert rest.seed == 5
    assert rest.token_ids != other.token_ids
    with refused("resume.seed"):
        continued(api, {"temperature": HOT, "seed": 6}, resume=resume)


def finished(api: Api) -> None:
    """An output that its client knows to be over is told of no more."""
    resume = cut_off(api, {"n": 2, "seed": 5})
    resume["outputs"][0]["finished"] = True
    stream = api.stream(
        "Generate",
        text="1, 2, 3,",
        sampling={"n": 2},
        stop={"max_tokens": 16, "ignore_eos": True},
        resume=resume,
    )
    messages = list(stream)
    assert {message.delta.index for message in messages if message.HasField("delta")} == {1}
    assert [message.finished.index for message in messages if message.HasField("finished")] == [1]


def _set_output(resume: Resume, **values: Any) -> None:
    resume["outputs"][0].update(values)


prompt_digest = goes_on(lambda resume: resume.update(prompt_digest=b"x"), "resume.prompt_digest")
token_ids = goes_on(lambda resume: _set_output(resume, token_ids=[-1]), "resume.outputs[0].token_ids[0]")
text_length = goes_on(lambda resume: _set_output(resume, text_length=999), "resume.outputs[0].text_length")
