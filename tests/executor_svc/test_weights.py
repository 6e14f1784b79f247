"""Loading: every tensor to its place, and a damaged checkpoint refused by file and tensor."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch_harness import save_checkpoint

from executor_svc.models.config import read_model_config
from executor_svc.models.qwen import QwenForCausalLM
from executor_svc.weights import dummy_weights, load_weights
from nanoserve.checkpoint import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
NAME = "model.layers.1.mlp.up_proj.weight"


def empty_model(folder: Path, dtype: torch.dtype = torch.float32) -> QwenForCausalLM:
    model = QwenForCausalLM(read_model_config(folder), dtype, torch.device("cpu"))
    for target in tensors_of(model).values():
        target.fill_(torch.nan)
    return model


def tensors_of(model: QwenForCausalLM) -> dict[str, torch.Tensor]:
    """What a whole model takes of each tensor of a checkpoint: one piece, all of it."""
    placements = model.checkpoint_tensors()
    return {name: target for name, placement in placements.items() for target, _ in placement.pieces}


def load(folder: Path, dtype: torch.dtype = torch.float32) -> QwenForCausalLM:
    model = empty_model(folder, dtype)
    load_weights(model, folder)
    return model


def change_file(path: Path, **changes: Any) -> None:
    """Rewrites a safetensors file; a tensor changed to None is left out."""
    tensors = load_file(path) | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", ["1GB", "15KB"])
@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3"])
def test_every_tensor_reaches_its_place(tmp_path: Path, tied: bool, shard: str, kind: str) -> None:
    reference = save_checkpoint(tmp_path, kind, tie_word_embeddings=tied, max_shard_size=shard)
    assert (tmp_path / INDEX).is_file() == (shard == "15KB")
    model = load(tmp_path)
    theirs = dict(reference.named_parameters())
    ours = tensors_of(model)
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    for name, parameter in model.named_parameters():
        assert not parameter.isnan().any(), name


def test_tensors_are_converted_to_the_model_s_dtype(tmp_path: Path) -> None:
    reference = save_checkpoint(tmp_path, "Qwen3")
    model = load(tmp_path, torch.bfloat16)
    weight = dict(reference.named_parameters())[NAME]
    assert torch.equal(tensors_of(model)[NAME], weight.bfloat16())


def test_a_tied_checkpoint_may_repeat_its_embedding_as_the_output_layer(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "Qwen2", tie_word_embeddings=True)
    change_file(tmp_path / SINGLE, **{"lm_head.weight": torch.zeros(3)})
    assert not load(tmp_path).lm_head.weight.isnan().any()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (None, "is missing"),
        (torch.zeros(48, 31), r"has shape \[48, 31\], config.json makes it \[48, 32\]"),
        (torch.zeros(32, 48), r"has shape \[32, 48\]"),
        (torch.zeros(48, 32, dtype=torch.int8), "is of type I8"),
    ],
)
def test_a_wrong_tensor_is_refused_by_file_and_name(
    tmp_path: Path, change: torch.Tensor | None, what: str
) -> None:
    save_checkpoint(tmp_path, "Qwen3")
    change_file(tmp_path / SINGLE, **{NAME: change})
    with pytest.raises(CheckpointError, match=what) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / SINGLE}: tensor {NAME} ")


def test_an_unexpected_tensor_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "Qwen3")
    change_file(tmp_path / SINGLE, **{"model.layers.2.mlp.up_proj.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"tensor model\.layers\.2\.mlp\.up_proj\.weight is unexpected"):
        load(tmp_path)


def test_a_missing_output_layer_is_refused_unless_tied(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "Qwen3", max_shard_size="15KB")
    index = json.loads((tmp_path / INDEX).read_text())
    shard = tmp_path / index["weight_map"].pop("lm_head.weight")
    (tmp_path / INDEX).write_text(json.dumps(index))
    change_file(shard, **{"lm_head.weight": None})
    with pytest.raises(CheckpointError, match=r"index\.json: tensor lm_head\.weight is missing"):
        load(tmp_path)


@pytest.mark.parametrize("length", [0, 4, 200, -1, -1000])
def test_a_truncated_file_is_refused_in_one_line(tmp_path: Path, length: int) -> None:
    save_checkpoint(tmp_path, "Qwen3")
    path = tmp_path / SINGLE
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="damaged safetensors file") as caught:
        load(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_of_rubbish_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "Qwen3")
    (tmp_path / SINGLE).write_bytes(b"\xff" * 5000)
    with pytest.raises(CheckpointError, match="damaged safetensors file"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", 3])
def test_an_index_that_names_no_plain_file_is_refused(tmp_path: Path, name: Any) -> None:
    save_checkpoint(tmp_path, "Qwen3", max_shard_size="15KB")
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"][NAME] = name
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=f"tensor {NAME}: .* is not a file name"):
        load(tmp_path)


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "Qwen3", max_shard_size="15KB")
    shard = tmp_path / json.loads((tmp_path / INDEX).read_text())["weight_map"][NAME]
    shard.unlink()
    with pytest.raises(CheckpointError, match="file is missing") as caught:
        load(tmp_path)
    assert str(shard) in str(caught.value)


def test_a_tensor_that_lies_in_another_shard_than_the_index_says_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "Qwen3", max_shard_size="15KB")
    index = json.loads((tmp_path / INDEX).read_text())
    others = sorted(set(index["weight_map"].values()) - {index["weight_map"][NAME]})
    index["weight_map"][NAME] = others[0]
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=f"{NAME} is (missing|unexpected)"):
        load(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "Qwen3")
    (tmp_path / SINGLE).unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        load(tmp_path)


def test_dummy_weights_are_the_same_for_a_seed_and_shaped_as_promised(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "Qwen2", hidden_size=256, vocab_size=400)
    models = [empty_model(tmp_path) for _ in range(3)]
    for model, seed in zip(models, (3, 3, 4), strict=True):
        dummy_weights(model, seed)
    first, same, other = (tensors_of(model) for model in models)
    for name, tensor in first.items():
        assert torch.equal(tensor, same[name])
        if name.endswith("norm.weight"):
            assert (tensor == 1).all()
        else:
            assert not torch.equal(tensor, other[name])
    embedding = first["model.embed_tokens.weight"]
    assert float(embedding.std()) == pytest.approx(0.02, rel=0.02)
    assert abs(float(embedding.mean())) < 2e-4
