"""Text to token ids and back: a byte-level BPE tokenizer from tokenizer.json, with the model's chat template."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from nanoserve.checkpoint import CheckpointError, read_json
from scheduler_svc.chat_template import ChatTemplate, load_chat_template


class Tokenizer:
    """What a model directory says about text.

    `token_bytes[id]` is what a token adds to a text, b"" for a special token; `raw_token_bytes[id]` the same with
    special tokens' own text. Ids past their end have no text: a model's vocabulary may be padded.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, chat_template: ChatTemplate | None = None) -> None:
        self._tokenizer = tokenizer
        self.chat_template = chat_template
        self.raw_token_bytes = _token_bytes(tokenizer)
        self.token_bytes = list(self.raw_token_bytes)
        for token_id, token in tokenizer.get_added_tokens_decoder().items():
            if token.special:
                self.token_bytes[token_id] = b""
        self.max_token_bytes = max(map(len, self.raw_token_bytes), default=1)

    def to_json(self) -> str:
        """The text of tokenizer.json."""
        text: str = self._tokenizer.to_str()
        return text

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; no special tokens are added, those in the text are recognised.

        Lets other threads run meanwhile.
        """
        # Only the batch form releases the interpreter lock.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of token ids; bytes that are no UTF-8 show as U+FFFD."""
        table = self.token_bytes if skip_special_tokens else self.raw_token_bytes
        pieces = (table[token_id] for token_id in token_ids if token_id < len(table))
        return b"".join(pieces).decode("utf-8", errors="replace")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Reads tokenizer.json, tokenizer_config.json and the chat template; CheckpointError names the file at fault."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{path}: file is missing")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{path}: not a tokenizer ({str(error).splitlines()[0]})") from error
    decoder = read_json(path).get("decoder")
    if not _is_byte_level(decoder):
        kind = decoder.get("type") if isinstance(decoder, dict) else decoder
        raise CheckpointError(f"{path}: only byte-level tokenizers are served, the decoder here is {kind}")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config_path = folder / "tokenizer_config.json"
    config = read_json(config_path) if config_path.is_file() else {}
    return Tokenizer(tokenizer, load_chat_template(folder, config))


def _is_byte_level(decoder: Any) -> bool:
    if not isinstance(decoder, dict):
        return False
    if decoder.get("type") == "Sequence":
        parts = decoder.get("decoders", [])
        return len(parts) == 1 and _is_byte_level(parts[0])
    return bool(decoder.get("type") == "ByteLevel")


def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes a byte as a visible character: itself where it is one, else one from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    table |= {chr(0x100 + index): byte for index, byte in enumerate(hidden)}
    return table


def _token_bytes(tokenizer: tokenizers.Tokenizer) -> list[bytes]:
    """The bytes of each token, by id; b"" where there is none."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    # Two entries may have one id: an added token's content is what counts.
    tokens = {token_id: token for token, token_id in vocabulary.items()}
    for token_id, added in tokenizer.get_added_tokens_decoder().items():
        tokens[token_id] = added.content
    byte_of = _byte_of_character()
    table = [b""] * (max(tokens, default=-1) + 1)
    for token_id, token in tokens.items():
        try:
            table[token_id] = bytes(map(byte_of.__getitem__, token))
        except KeyError:
            table[token_id] = token.encode()  # not written in that alphabet, so it stands for itself
    return table
