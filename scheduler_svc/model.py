"""What a model directory says to the scheduler, weights aside: its name, end tokens and default parameters."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanoserve.checkpoint import CheckpointError, model_fingerprint, read_json
from scheduler_svc.core.request import Sampling
from scheduler_svc.tokenizer import Tokenizer, load_tokenizer

_NEUTRAL = Sampling(temperature=1.0)
# What generation_config.json may set, with the range of GenerateRequest's field of that name.
_REAL_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.0, 10.0),
}
_NOT_ZERO = frozenset({"top_p", "repetition_penalty"})


@dataclass(frozen=True, slots=True)
class Model:
    """The served model."""

    folder: Path
    name: str
    """What requests call it."""
    architecture: str
    eos_token_ids: tuple[int, ...]
    default_sampling: Sampling
    """What a request gets where it sets nothing."""
    fingerprint: str
    tokenizer: Tokenizer


def load_model(folder: Path, name: str) -> Model:
    """Reads a model directory; CheckpointError, one line that names the file, where it is damaged."""
    config = read_json(folder / "config.json")
    path = folder / "generation_config.json"
    generation = read_json(path) if path.is_file() else {}
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise CheckpointError(f"{folder / 'config.json'}: architectures: is missing")
    eos = _token_ids(generation.get("eos_token_id"), path, "eos_token_id")
    eos += _token_ids(config.get("eos_token_id"), folder / "config.json", "eos_token_id")
    return Model(
        folder=folder,
        name=name,
        architecture=architectures[0],
        eos_token_ids=tuple(dict.fromkeys(eos)),
        default_sampling=_default_sampling(generation, path),
        fingerprint=model_fingerprint(folder),
        tokenizer=load_tokenizer(folder),
    )


def _token_ids(value: Any, path: Path, key: str) -> list[int]:
    """Token ids that a file gives as one, as a list, or not at all."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
        raise CheckpointError(f"{path}: {key}: {value!r} is neither a token id nor a list of them")
    return ids


def _default_sampling(generation: dict[str, Any], path: Path) -> Sampling:
    values: dict[str, Any] = {}
    for key, (low, high) in _REAL_RANGES.items():
        value = generation.get(key)
        if value is None:
            continue
        in_range = isinstance(value, int | float) and math.isfinite(value) and low <= value <= high
        if not in_range or (value == 0 and key in _NOT_ZERO):
            raise CheckpointError(f"{path}: {key}: {value!r} is out of range")
        values[key] = float(value)
    top_k = generation.get("top_k")
    if top_k is not None:
        if type(top_k) is not int or top_k < 0:
            raise CheckpointError(f"{path}: top_k: {top_k!r} is out of range")
        values["top_k"] = top_k
    if generation.get("do_sample") is False:
        values["temperature"] = 0.0
    return replace(_NEUTRAL, **values)
