"""Random requests through both services: every token is the one that transformers' processors and the noise choose.

The checkpoint's generation_config.json gives what a request leaves out, as transformers reads it.
"""

import json
import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from executor_svc.noise import gumbel_noise, seed_as_int64
from nanoserve.checkpoint import demo_checkpoint
from nanoserve_client import Client, Completion, CompletionOutput, FinishReason
from nanoserve_client.supervisor import LocalServer
from scheduler_svc.core.request import sequence_seed

NUM_REQUESTS = 40
GENERATION_CONFIG = {
    "do_sample": True,
    "temperature": 1.4,
    "top_k": 200,
    "top_p": 0.97,
    "min_p": 0.002,
    "repetition_penalty": 1.15,
    "eos_token_id": [767, 765],
}
EOS = GENERATION_CONFIG["eos_token_id"]
PROMPTS = ["What is 123 + 45?", "The", "one, two,", "Paged attention reads keys and", " a b a b", "7 6 5 4 3"]
STOP_STRINGS = [" a", "e", ", ", "12", "t th", " to", "s. A", " i", "5 4"]
NEAR = 1e-3
"""Two scores so near may change places by the last bits of the logits, which batching changes."""
FIRST_SPECIAL = 765


@dataclass(frozen=True)
class Reference:
    """The model and the defaults as transformers has them, and a client of the server."""

    model: Any
    defaults: GenerationConfig
    client: Client


class OutputPenalties(LogitsProcessor):
    """Frequency and presence penalties, which transformers lacks: for each token of the output, as OpenAI's."""

    def __init__(self, num_prompt_tokens: int, frequency: float, presence: float) -> None:
        self.num_prompt_tokens, self.frequency, self.presence = num_prompt_tokens, frequency, presence

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        counts = torch.bincount(input_ids[0, self.num_prompt_tokens :], minlength=scores.shape[-1])
        return scores - self.frequency * counts - self.presence * (counts > 0)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    folder = tmp_path_factory.mktemp("parameters") / "model"
    shutil.copytree(demo_checkpoint(), folder)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION_CONFIG))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    flags = ["--verify", "--dtype=float32", "--num-kv-blocks=129", "--max-num-seqs=8"]
    with LocalServer(str(folder), executor_flags=flags) as server, Client(server.address) as client:
        yield Reference(model, GenerationConfig.from_pretrained(folder), client)


def random_params(draw: random.Random) -> dict[str, Any]:
    """A request's parameters, each of them absent as often as not."""
    end_tokens = draw.sample(range(768), draw.randint(1, 20))
    choices: dict[str, Any] = {
        "temperature": draw.choice([0.0, 0.3, 1.0, 3.0]),
        "top_p": draw.uniform(0.1, 1.0),
        "top_k": draw.choice([0, 1, 3, 40]),
        "min_p": draw.choice([0.0, 0.01, 0.2]),
        "repetition_penalty": draw.uniform(0.7, 2.0),
        "frequency_penalty": draw.uniform(-1.0, 2.0),
        "presence_penalty": draw.uniform(-1.0, 2.0),
        "logit_bias": {draw.randrange(768): draw.uniform(-8.0, 8.0) for _ in range(draw.randint(1, 6))},
        "seed": draw.getrandbits(64),
        "n": draw.randint(1, 3),
        "min_tokens": draw.randint(0, 12),
        "stop_token_ids": end_tokens,
        "ignore_eos": True,
    }
    params = {name: value for name, value in choices.items() if draw.random() < 0.5}
    # A stop string complete before min_tokens is plain text: tests of OutputRules have that.
    if "min_tokens" not in params and draw.random() < 0.5:
        params["stop"] = draw.sample(STOP_STRINGS, 3)
        params["include_stop_in_output"] = draw.random() < 0.5
    return params | {"max_tokens": draw.randint(12, 24)}


def processors(reference: Reference, params: dict[str, Any], num_prompt_tokens: int) -> LogitsProcessorList:
    """transformers' own, in the order of the contract; what is absent is as the generation config has it."""

    def value(name: str) -> Any:
        return params.get(name, GENERATION_CONFIG.get(name) and getattr(reference.defaults, name))

    found: list[LogitsProcessor] = []
    if "logit_bias" in params:
        found.append(
            SequenceBiasLogitsProcessor({(key,): bias for key, bias in params["logit_bias"].items()})
        )
    found.append(RepetitionPenaltyLogitsProcessor(value("repetition_penalty")))
    penalties = [params.get(f"{name}_penalty", 0.0) for name in ("frequency", "presence")]
    found.append(OutputPenalties(num_prompt_tokens, *penalties))
    if params.get("min_tokens") and (ends := end_tokens(params)):
        found.append(MinNewTokensLengthLogitsProcessor(num_prompt_tokens, params["min_tokens"], ends))
    if value("temperature"):
        found.append(TemperatureLogitsWarper(float(value("temperature"))))
        found += [TopKLogitsWarper(value("top_k"))] if value("top_k") else []
        found.append(TopPLogitsWarper(value("top_p")))
        found.append(MinPLogitsWarper(value("min_p")))
    return LogitsProcessorList(found)


def end_tokens(params: dict[str, Any]) -> list[int]:
    """Those that end an output."""
    eos = [] if params.get("ignore_eos") else EOS
    return [*eos, *params.get("stop_token_ids", [])]


def num_near(
    reference: Reference, params: dict[str, Any], prompt: list[int], completion: Completion, index: int
) -> int:
    """Checks that each token has the best score; returns for how many another has as good a one, give or take."""
    tokens = list(completion.outputs[index].token_ids)
    sequence = torch.tensor([prompt + tokens])
    with torch.inference_mode():
        logits = reference.model(sequence).logits[0]
    process = processors(reference, params, len(prompt))
    draws = params.get("temperature", GENERATION_CONFIG["temperature"]) > 0
    seed = torch.tensor([seed_as_int64(sequence_seed(completion.seed, index))])
    near = 0
    for offset, token in enumerate(tokens):
        position = len(prompt) + offset
        scores = process(sequence[:, :position], logits[position - 1 : position].clone())[0]
        if draws:
            scores = scores + gumbel_noise(seed, torch.tensor([position]), len(scores))[0]
        assert scores[token] >= scores.max() - NEAR, (offset, token, int(scores.argmax()))
        near += int(scores.argmax()) != token
    return near


def check_end(reference: Reference, params: dict[str, Any], output: CompletionOutput) -> None:
    """The output ends where the first of its stops is, and is said to end by that one."""
    tokens, ends, strings = list(output.token_ids), end_tokens(params), params.get("stop", [])
    texts = [
        reference.client.detokenize(tokens[:count], skip_special_tokens=True) for count in (-1, len(tokens))
    ]
    assert not set(ends) & set(tokens[:-1])
    assert not any(string in texts[0] for string in strings)
    included = params.get("include_stop_in_output", False)
    if output.finish_reason is FinishReason.LENGTH:
        assert len(tokens) == params["max_tokens"]
        assert not set(ends) & set(tokens)
        assert output.text == texts[1]
    elif isinstance(output.stop, str):
        assert output.stop in strings
        begin = texts[1].index(output.stop)
        assert output.text == texts[1][: begin + len(output.stop) * included]
    else:
        assert output.stop == tokens[-1] in ends
        assert len(tokens) > params.get("min_tokens", 0)
        shown = [token for token in tokens[:-1] if token < FIRST_SPECIAL] + tokens[-1:]
        assert output.text == (reference.client.detokenize(shown) if included else texts[0])


def test_every_token_and_every_end_is_the_references(reference: Reference) -> None:
    draw = random.Random(11)
    asked = [(draw.choice(PROMPTS), random_params(draw)) for _ in range(NUM_REQUESTS)]
    with ThreadPoolExecutor(12) as pool:
        completions = list(pool.map(lambda one: reference.client.generate(one[0], **one[1]), asked))
    num_tokens, near, reasons = 0, 0, set()
    for (text, params), completion in zip(asked, completions, strict=True):
        assert len(completion.outputs) == params.get("n", 1)
        assert completion.seed == params.get("seed", completion.seed)
        prompt = list(reference.client.tokenize(text))
        for index, output in enumerate(completion.outputs):
            near += num_near(reference, params, prompt, completion, index)
            check_end(reference, params, output)
            num_tokens += len(output.token_ids)
            reasons.add((output.finish_reason, type(output.stop)))
    assert num_tokens > 600
    assert near < num_tokens / 200
    assert len(reasons) == 3, "length, stop strings and stop tokens"


def test_the_model_tells_the_defaults_that_transformers_reads(reference: Reference) -> None:
    told = reference.client.model_info().default_sampling
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
        assert getattr(told, name) == pytest.approx(getattr(reference.defaults, name))
