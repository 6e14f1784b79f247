"""Fills a model's weights: from safetensors files, tensor by tensor, or with seeded random numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from executor_svc.models.qwen import QwenForCausalLM
from executor_svc.parallel.placement import Placement
from nanoserve.checkpoint import CheckpointError, read_json

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_DUMMY_STD = 0.02
_FLOAT_TYPES = ("F32", "BF16", "F16")


def load_weights(model: QwenForCausalLM, folder: Path) -> None:
    """Copies every tensor of the checkpoint to its place, on its device and in its dtype; reads what is needed.

    CheckpointError, one line naming file and tensor, where a tensor is missing, unexpected, of another shape or
    type, or where a file is damaged.
    """
    targets = model.checkpoint_tensors()
    # Written by some trainers though it is the embedding's own.
    ignored = {"lm_head.weight"} if model.tied else set[str]()
    for path, names in _files(folder, set(targets), ignored).items():
        _load_file(path, names, targets, ignored)


def dummy_weights(model: QwenForCausalLM, seed: int) -> None:
    """Normal weights of standard deviation 0.02 and norms of 1: the same for a seed on one kind of device.

    However many ranks share them: each draws whole tensors and keeps its part.
    """
    targets = model.checkpoint_tensors()
    weight = model.embed_tokens.weight
    generator = torch.Generator(weight.device).manual_seed(seed)
    for name, placement in targets.items():
        if name.endswith("norm.weight"):
            for target, _ in placement.pieces:
                target.fill_(1.0)
            continue
        drawn = torch.empty(placement.shape, dtype=weight.dtype, device=weight.device)
        drawn.normal_(0.0, _DUMMY_STD, generator=generator)
        for target, index in placement.pieces:
            target.copy_(drawn[index])


def _files(folder: Path, expected: set[str], ignored: set[str]) -> dict[Path, set[str] | None]:
    """The checkpoint's files, each with the tensors that the index puts there; None: all, there being no index."""
    if (folder / _SINGLE).is_file():
        return {folder / _SINGLE: None}
    index = folder / _INDEX
    if not index.is_file():
        raise CheckpointError(f"{folder}: neither {_SINGLE} nor {_INDEX} is there")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index}: weight_map is missing or not an object")
    files: dict[Path, set[str] | None] = {}
    for name, file in weight_map.items():
        if name not in expected | ignored:
            raise CheckpointError(f"{index}: tensor {name} is unexpected")
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{index}: tensor {name}: {file!r} is not a file name")
        names = files.setdefault(folder / file, set())
        assert names is not None
        names.add(name)
    missing = sorted(expected - set(weight_map))
    if missing:
        raise CheckpointError(f"{index}: tensor {missing[0]} is missing")
    return files


def _load_file(
    path: Path, names: set[str] | None, targets: Mapping[str, Placement], ignored: set[str]
) -> None:
    """Copies the tensors of one file, which must be exactly `names` (None: all the targets)."""
    device = str(next(target.device for placement in targets.values() for target, _ in placement.pieces))
    if not path.is_file():
        raise CheckpointError(f"{path}: file is missing")
    try:
        with safe_open(path, framework="pt", device=device) as file:
            found = set(file.keys())
            _check_names(path, found - ignored, (set(targets) if names is None else names) - ignored)
            for name in sorted(found - ignored):
                _copy(path, name, file.get_slice(name), targets[name])
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged safetensors file ({_first_line(error)})") from error


def _check_names(path: Path, found: set[str], expected: set[str]) -> None:
    for name in sorted(expected - found):
        raise CheckpointError(f"{path}: tensor {name} is missing")
    for name in sorted(found - expected):
        raise CheckpointError(f"{path}: tensor {name} is unexpected")


def _copy(path: Path, name: str, source: Any, placement: Placement) -> None:
    """`source` is a slice of safetensors: nothing is read of it but what it is indexed with."""
    shape = source.get_shape()
    if tuple(shape) != placement.shape:
        shapes = f"{list(shape)}, config.json makes it {list(placement.shape)}"
        raise CheckpointError(f"{path}: tensor {name} has shape {shapes}")
    if source.get_dtype() not in _FLOAT_TYPES:
        raise CheckpointError(f"{path}: tensor {name} is of type {source.get_dtype()}, which is not served")
    for target, index in placement.pieces:
        target.copy_(source[index])


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
