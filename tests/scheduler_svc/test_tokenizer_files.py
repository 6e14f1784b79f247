"""Model directories: what is read from them, and what damage is told."""

import json
from pathlib import Path
from typing import Any

import pytest
from text_factory import raw_tokenizer

from nanoserve.checkpoint import CheckpointError
from scheduler_svc.model import Model, load_model

CONFIG = {"architectures": ["Qwen3ForCausalLM"], "eos_token_id": 2}


def write_model(
    folder: Path, config: dict[str, Any] | None = None, generation: dict[str, Any] | None = None
) -> Path:
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    raw_tokenizer().save(str(folder / "tokenizer.json"))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def load(folder: Path) -> Model:
    return load_model(folder, "name")


def test_without_a_generation_config_the_parameters_are_neutral(tmp_path: Path):
    model = load(write_model(tmp_path))
    sampling = model.default_sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (1.0, 1.0, 0, 0.0)
    assert sampling.repetition_penalty == 1.0
    assert model.eos_token_ids == (2,)
    assert model.architecture == "Qwen3ForCausalLM"


def test_the_generation_config_gives_the_defaults(tmp_path: Path):
    generation = {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 0.1,
        "repetition_penalty": 1.05,
        "eos_token_id": [1, 2],
    }
    model = load(write_model(tmp_path, generation=generation))
    sampling = model.default_sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.6, 0.95, 20)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.1, 1.05)
    assert model.eos_token_ids == (1, 2)


def test_a_model_that_does_not_sample_is_greedy(tmp_path: Path):
    model = load(
        write_model(tmp_path, generation={"do_sample": False, "temperature": 0.7, "eos_token_id": 1})
    )
    assert model.default_sampling.temperature == 0
    assert model.eos_token_ids == (1, 2)


@pytest.mark.parametrize(
    ("generation", "named"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"eos_token_id": [True]}, "eos_token_id"),
    ],
)
def test_a_bad_generation_config_is_told_by_file_and_key(
    generation: dict[str, Any], named: str, tmp_path: Path
):
    with pytest.raises(CheckpointError, match=rf"generation_config\.json: {named}"):
        load(write_model(tmp_path, generation=generation))


def test_a_model_without_architectures_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"config\.json: architectures"):
        load(write_model(tmp_path, config={}))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_text("{"), "not a tokenizer"),
        (lambda path: path.write_text(_without_decoder(path)), "byte-level"),
        (lambda path: path.write_text(_with_metaspace(path)), "Metaspace"),
    ],
)
def test_a_damaged_tokenizer_is_told_by_its_file(damage: Any, told: str, tmp_path: Path):
    write_model(tmp_path)
    damage(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match=told) as refusal:
        load(tmp_path)
    assert "tokenizer.json" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def _without_decoder(path: Path) -> str:
    return json.dumps(json.loads(path.read_text()) | {"decoder": None})


def _with_metaspace(path: Path) -> str:
    decoder = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    return json.dumps(json.loads(path.read_text()) | {"decoder": decoder})
