"""The model directories that benchmarks make are what both services take, and of the sizes they claim."""

import math
from pathlib import Path

import pytest
import torch

from benchmarks.shapes import NAMES, SHAPES, shape_of, write_model
from executor_svc.models.config import read_model_config
from executor_svc.models.qwen import QwenForCausalLM
from nanoserve.checkpoint import demo_checkpoint
from scheduler_svc.model import load_model


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_counted_as_the_model_has_them(name: str, tmp_path: Path) -> None:
    folder = tmp_path if name in SHAPES else demo_checkpoint()
    if name in SHAPES:
        write_model(SHAPES[name], tmp_path)
    config = read_model_config(folder)
    model = QwenForCausalLM(config, torch.bfloat16, torch.device("meta"))
    num_parameters = sum(math.prod(tensor.shape) for tensor in model.checkpoint_tensors().values())
    assert shape_of(name).num_parameters == num_parameters
    assert config.max_model_len >= 2048


def test_the_scheduler_takes_a_shape_and_every_ordinary_id_has_a_text(tmp_path: Path) -> None:
    write_model(SHAPES["0.6b"], tmp_path)
    model = load_model(tmp_path, "shape")
    assert model.eos_token_ids == (151_645,)
    assert all(model.tokenizer.token_bytes[:151_643])
    assert len(set(model.tokenizer.token_bytes[:151_643])) == 151_643
    assert model.tokenizer.decode([0, 256, 257], skip_special_tokens=True) == "!aaaaaaab"


def test_sampling_is_neutral_where_a_request_sets_nothing(tmp_path: Path) -> None:
    write_model(SHAPES["14b"], tmp_path)
    defaults = load_model(tmp_path, "shape").default_sampling
    assert (defaults.temperature, defaults.top_k, defaults.top_p) == (1.0, 0, 1.0)
