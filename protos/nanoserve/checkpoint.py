"""Model directories: where one is found, and the fingerprints by which two processes know they hold the same model.

Layout of a directory: Hugging Face's (config.json, tokenizer.json, *.safetensors, ...).
"""

import json
from pathlib import Path
from typing import Any

import xxhash

_CONFIG_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
_SAMPLE_BYTES = 64 * 1024
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja"]


class CheckpointError(Exception):
    """A model directory that is missing or damaged; the message is one line that names the file."""


def demo_checkpoint() -> Path:
    """The checkpoint that ships with the project: inside the wheel, or in the repository it was installed from."""
    package = Path(__file__).resolve().parent
    for folder in (package / "models", package.parents[1] / "models"):
        if (folder / "demo-qwen3" / "config.json").is_file():
            return folder / "demo-qwen3"
    raise CheckpointError(f"{package / 'models' / 'demo-qwen3'}: the demo checkpoint is missing")


def find_checkpoint(model: str | None, *, weights: bool) -> Path:
    """Returns the directory of `model`: a local one, a hub id (downloaded when not cached), or the demo's for None.

    `weights` says whether the safetensors files are needed. CheckpointError, naming the flag that is `model`, where
    there is no such directory.
    """
    if model is None:
        return demo_checkpoint()
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise CheckpointError(f"--model: {model}: no such directory")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = _HUB_FILES if weights else [p for p in _HUB_FILES if p != "*.safetensors"]
    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"--model: {model}: no such directory, nor found on the hub ({reason})"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; CheckpointError where it is missing or is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: file is missing") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return data


def model_fingerprint(folder: Path) -> str:
    """Hex xxh3-128 over the config and tokenizer files' names and bytes. Both services must get the same."""
    digest = xxhash.xxh3_128()
    for name in _CONFIG_FILES:
        path = folder / name
        if path.is_file():
            data = path.read_bytes()
            digest.update(f"{name}:{len(data)}:".encode())
            digest.update(data)
    return digest.hexdigest()


def weights_fingerprint(folder: Path) -> str:
    """Hex xxh3-128 over each safetensors file's name, size and 64 KiB samples (its header's start among them)."""
    digest = xxhash.xxh3_128()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            for offset in sorted({0, size // 3, size * 2 // 3, max(0, size - _SAMPLE_BYTES)}):
                file.seek(offset)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
