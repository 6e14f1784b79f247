"""Every field of the public contract: what a request sets is seen to act or refused by name, what answers hold is seen.

The tables name each field of each message that a call takes or gives: one that is added to the contract without a line
here fails. Each parameter's exact effect is held elsewhere, by `test_parameters_against_transformers.py` to begin with.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import generate_cases as generate
import other_cases as other
import pytest
import resume_cases as resume
from answers import MEANINGS, hear_everything
from contract import FILES, METHODS, Api, Seen, leaves, messages_below, values_of
from generate_cases import Case, keeps_only_the_best, looks_like, repeats_less, until
from google.protobuf.message import Message
from other_cases import chat_cases, model_of, read_by_generate, read_by_tokenize

import nanoserve.v1
from nanoserve.checkpoint import demo_checkpoint
from nanoserve.v1 import inference_pb2 as pb
from nanoserve_client.supervisor import LocalServer

CASES: dict[str, Case] = {
    "GenerateRequest.request_id": generate.request_id,
    "GenerateRequest.model": generate.model,
    "GenerateRequest.text": generate.text,
    "GenerateRequest.token_ids.ids": generate.token_ids,
    **chat_cases("GenerateRequest.chat", read_by_generate),
    "GenerateRequest.sampling.temperature": generate.temperature,
    "GenerateRequest.sampling.top_p": keeps_only_the_best(top_p=1e-6),
    "GenerateRequest.sampling.top_k": keeps_only_the_best(top_k=1),
    "GenerateRequest.sampling.min_p": keeps_only_the_best(min_p=1),
    "GenerateRequest.sampling.repetition_penalty": repeats_less(repetition_penalty=2),
    "GenerateRequest.sampling.frequency_penalty": repeats_less(frequency_penalty=2),
    "GenerateRequest.sampling.presence_penalty": repeats_less(presence_penalty=2),
    "GenerateRequest.sampling.seed": generate.seed,
    "GenerateRequest.sampling.n": generate.n,
    "GenerateRequest.sampling.logit_bias": generate.logit_bias,
    "GenerateRequest.stop.max_tokens": generate.max_tokens,
    "GenerateRequest.stop.min_tokens": generate.min_tokens,
    "GenerateRequest.stop.ignore_eos": generate.ignore_eos,
    "GenerateRequest.stop.include_stop_in_output": generate.include_stop_in_output,
    "GenerateRequest.stop.strings": generate.strings,
    "GenerateRequest.stop.token_ids": generate.stop_token_ids,
    "GenerateRequest.output.logprobs": generate.logprobs,
    "GenerateRequest.output.prompt_logprobs": generate.prompt_logprobs,
    "GenerateRequest.guided.json_schema": looks_like('"(no|yes)"', json_schema='{"enum": ["no", "yes"]}'),
    "GenerateRequest.guided.regex": looks_like("[0-7]{3}", regex="[0-7]{3}"),
    "GenerateRequest.guided.choice.texts": looks_like("red|blue", choice={"texts": ["red", "blue"]}),
    "GenerateRequest.guided.grammar": looks_like("(ab)+", grammar='start: "ab"+'),
    "GenerateRequest.priority": generate.priority,
    "GenerateRequest.cache_salt": generate.cache_salt,
    "GenerateRequest.resume.seed": resume.seed,
    "GenerateRequest.resume.prompt_digest": resume.prompt_digest,
    "GenerateRequest.resume.outputs.token_ids": resume.token_ids,
    "GenerateRequest.resume.outputs.text_length": resume.text_length,
    "GenerateRequest.resume.outputs.finished": resume.finished,
    "TokenizeRequest.model": model_of("Tokenize", text="x"),
    "TokenizeRequest.text": other.tokenize_text,
    **chat_cases("TokenizeRequest.chat", read_by_tokenize),
    "DetokenizeRequest.model": model_of("Detokenize", token_ids=[1]),
    "DetokenizeRequest.token_ids": other.tokenize_text,
    "DetokenizeRequest.skip_special_tokens": other.skip_special_tokens,
    "GetModelRequest.model": model_of("GetModel"),
    "WatchLoadRequest.interval_seconds": other.interval_seconds,
    "DrainRequest.timeout_seconds": other.drain_timeout,
    "SwitchExecutorRequest.executor": other.executor,
    "StartProfileRequest.num_steps": other.num_steps,
}
NEVER_SET = {
    "GetModelResponse.default_sampling.seed",  # there is no default seed
    "GetModelResponse.default_sampling.logit_bias",  # nor bias
    "SwitchExecutorResponse.epoch",  # there is no other executor
    *(
        f"{answer}.load.num_padded_tokens" for answer in ("GetLoadResponse", "WatchLoadResponse")
    ),  # nor static batching
}
FLAGS = {
    "executor_flags": ["--verify", "--num-kv-blocks=33", f"--max-num-seqs={generate.MAX_NUM_SEQS}"],
    # Whatever the machine: so that plans of several steps are seen.
    "scheduler_flags": ["--max-plan-ms=1000"],
}


def fields_of(direction: str) -> dict[str, str]:
    """Paths of all fields of the messages that calls take or give, each with its message and field."""
    return {
        path: f"{field.containing_type.name}.{field.name}"
        for method in METHODS
        for path, field in leaves(getattr(method, direction))
    }


REQUEST_FIELDS, RESPONSE_FIELDS = fields_of("input_type"), fields_of("output_type")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], LocalServer]:
    """Makes servers of the shipped model, with few rows and blocks, profiles, and a template that takes an option."""
    folder = tmp_path_factory.mktemp("walk") / "model"
    shutil.copytree(demo_checkpoint(), folder)
    (folder / "chat_template.jinja").write_text(other.THINKING_TEMPLATE)
    flags = FLAGS | {"executor_flags": [*FLAGS["executor_flags"], f"--profile-dir={folder.parent}"]}
    return lambda: LocalServer(str(folder), **flags)


@pytest.fixture(scope="module")
def api(start: Callable[[], LocalServer]) -> Iterator[Api]:
    with start() as server:
        api = Api(server.address)
        yield api
        api.close()


@pytest.fixture(scope="module")
def heard(start: Callable[[], LocalServer]) -> list[Message]:
    """All answers of a server of its own."""
    with start() as server:
        api = Api(server.address)
        hear_everything(api)
        api.close()
    return api.received


@pytest.fixture(scope="module")
def seen(heard: list[Message]) -> dict[str, list[Seen]]:
    """What they hold, by path."""
    by_path: dict[str, list[Seen]] = {path: [] for path in RESPONSE_FIELDS}
    for message in heard:
        for value in values_of(message):
            by_path[value.path].append(value)
    return by_path


def test_the_walk_meets_every_file_and_message_of_the_contract():
    folder = Path(next(iter(nanoserve.v1.__path__)))
    assert {Path(file.name).name for file in FILES} == {path.name for path in folder.glob("*.proto")}
    ends = [getattr(method, way) for method in METHODS for way in ("input_type", "output_type")]
    assert set().union(*map(messages_below, ends)) == {
        name for file in FILES for name in file.message_types_by_name
    }


def test_the_tables_name_no_field_that_is_gone():
    assert CASES.keys() <= REQUEST_FIELDS.keys()
    assert MEANINGS.keys() <= set(RESPONSE_FIELDS.values())
    assert NEVER_SET <= RESPONSE_FIELDS.keys()


@pytest.mark.parametrize("path", REQUEST_FIELDS)
def test_what_a_request_sets_acts_or_is_refused_by_name(api: Api, path: str):
    assert path in CASES, f"{path} is in the contract and has no case"
    CASES[path](api)
    until(api, lambda load: not load.num_running_requests and not load.num_held_blocks)


@pytest.mark.parametrize("path", [path for path in RESPONSE_FIELDS if path not in NEVER_SET])
def test_what_an_answer_holds_is_seen_and_means_what_it_should(seen: dict[str, list[Seen]], path: str):
    name = RESPONSE_FIELDS[path]
    assert name in MEANINGS, f"{name} is in the contract and has no meaning here"
    assert any(value.is_set for value in seen[path]), f"{path} was never set"
    assert [value.value for value in seen[path] if not MEANINGS[name](value.value)] == []


def test_what_is_never_set_is_not(seen: dict[str, list[Seen]]):
    assert not any(value.is_set for path in NEVER_SET for value in seen[path])


def test_every_finish_reason_is_given(seen: dict[str, list[Seen]]):
    reasons = {value.value for value in seen["GenerateResponse.finished.finish_reason"]}
    assert reasons == set(pb.FinishReason.values()) - {pb.FINISH_REASON_UNSPECIFIED}


def test_free_cached_and_held_blocks_add_up_in_every_load(heard: list[Message]):
    loads = [message.load for message in heard if hasattr(message, "load")]
    assert len(loads) > 10
    for load in loads:
        parts = load.num_free_blocks + load.num_cached_blocks + load.num_held_blocks
        assert parts == load.num_total_blocks
        assert load.num_shared_blocks <= load.num_held_blocks
