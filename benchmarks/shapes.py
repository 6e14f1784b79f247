"""Model directories for `--load-format dummy`: the shapes that engines are compared on, without their weights.

The tokenizer is made up, of the real one's size: every id has a text of four letters, so that detokenisation costs
what it costs in service. `python benchmarks/shapes.py 0.6b DIR` writes one.
"""

import argparse
import itertools
import json
import string
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanoserve.checkpoint import demo_checkpoint, read_json

_VOCAB_SIZE = 151_936
_NUM_ORDINARY = 151_643  # as in Qwen's tokenizer: special tokens follow, then ids without a text
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a dense Qwen3 model."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    tied: bool
    """Whether the output head is the embedding."""
    head_dim: int = 128
    vocab_size: int = _VOCAB_SIZE

    @property
    def num_parameters(self) -> int:
        """All of them, a tied embedding counted once."""
        heads = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim + self.num_heads * self.head_dim
        layer = heads * self.hidden_size + 3 * self.hidden_size * self.intermediate_size
        norms = 2 * self.hidden_size + 2 * self.head_dim
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied else 2)
        return self.num_layers * (layer + norms) + embeddings + self.hidden_size

    @property
    def num_step_parameters(self) -> int:
        """Those that a decode step reads: all, but of an untied embedding only the rows of its tokens."""
        return self.num_parameters - (0 if self.tied else self.vocab_size * self.hidden_size)

    @property
    def kv_values_per_token(self) -> int:
        """Numbers of keys and values that a token holds, in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


SHAPES = {
    "0.6b": Shape(1024, num_layers=28, num_heads=16, num_kv_heads=8, intermediate_size=3072, tied=True),
    "14b": Shape(5120, num_layers=40, num_heads=40, num_kv_heads=8, intermediate_size=17_408, tied=False),
}
NAMES = (*SHAPES, "demo")
"""What `--model-shape` takes: "demo" is the checkpoint that ships, with its real weights."""


def shape_of(name: str) -> Shape:
    """The shape of that name."""
    return SHAPES[name] if name in SHAPES else _read_shape(demo_checkpoint())


def _read_shape(folder: Path) -> Shape:
    config = read_json(folder / "config.json")
    return Shape(
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        intermediate_size=config["intermediate_size"],
        tied=config["tie_word_embeddings"],
        head_dim=config["head_dim"],
        vocab_size=config["vocab_size"],
    )


def write_model(shape: Shape, folder: Path) -> None:
    """Writes config.json and tokenizer.json; no generation config, so that sampling defaults are neutral."""
    (folder / "config.json").write_text(json.dumps(_config(shape), indent=2))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(), ensure_ascii=False))


def _config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": 40_960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000,
        "attention_bias": False,
        "use_sliding_window": False,
        "tie_word_embeddings": shape.tied,
        "eos_token_id": _NUM_ORDINARY + _SPECIAL.index("<|im_end|>"),
        "torch_dtype": "bfloat16",
    }


def _tokenizer() -> dict[str, Any]:
    """A byte-level BPE tokenizer without merges: bytes, then words of four letters."""
    words = map("".join, itertools.product(string.ascii_lowercase, repeat=4))
    tokens = itertools.islice(itertools.chain(_byte_characters(), words), _NUM_ORDINARY)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": _NUM_ORDINARY + index, "content": content, "special": True, **flags}
            for index, content in enumerate(_SPECIAL)
        ],
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": True,
        },
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": True,
        },
        "model": {"type": "BPE", "vocab": {token: index for index, token in enumerate(tokens)}, "merges": []},
    }


def _byte_characters() -> list[str]:
    """The 256 characters that a byte-level vocabulary writes bytes as."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(code) for code in [*printable, *range(0x100, 0x100 + 256 - len(printable))]]


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=tuple(SHAPES))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    write_model(SHAPES[arguments.shape], arguments.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
