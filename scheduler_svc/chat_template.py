"""Chat templates: Jinja programs that turn messages into the text a model was trained on.

They run in a sandbox with the names and options that Hugging Face templates are written for.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nanoserve.checkpoint import CheckpointError

_SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# Beside the special tokens: what the server sets itself.
_RESERVED = frozenset({"messages", "add_generation_prompt", *_SPECIAL_TOKENS})


class TemplateFailed(Exception):
    """The template refused the chat, or could not make sense of it; the message is one line."""


class _GenerationTag(Extension):
    """`{% generation %}` marks what an assistant said, for training; here its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled template, with the special tokens it may name."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Raises jinja2.TemplateSyntaxError."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._template = environment.from_string(source)
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """Renders messages (each with `role` and `content`); `options` are more variables. TemplateFailed."""
        variables: dict[str, Any] = {"tools": None, "documents": None, **self._special_tokens}
        variables |= options or {}
        try:
            return self._template.render(
                variables, messages=list(messages), add_generation_prompt=add_generation_prompt
            )
        except Exception as error:
            # A template is a program over the client's values: whatever it raises is about them.
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise TemplateFailed(reason) from error


def is_reserved(name: str) -> bool:
    """Whether a template variable is the server's to set."""
    return name in _RESERVED


def load_chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> ChatTemplate | None:
    """The template of a model directory: chat_template.jinja, else tokenizer_config.json's; None where it has none.

    CheckpointError, naming the file, where there is one that cannot be used.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            source: str | None = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path}: not readable ({error})") from error
    else:
        path = folder / "tokenizer_config.json"
        source = _select(tokenizer_config.get("chat_template"), path)
    if source is None:
        return None
    try:
        return ChatTemplate(source, _special_tokens(tokenizer_config))
    except jinja2.TemplateError as error:
        raise CheckpointError(f"{path}: chat template: {str(error).splitlines()[0]}") from error


def _select(entry: object, path: Path) -> str | None:
    """The template to use of tokenizer_config.json's `chat_template`: a text, or a list of named ones."""
    if entry is None or isinstance(entry, str):
        return entry
    if isinstance(entry, list) and all(isinstance(item, dict) for item in entry):
        named = {item.get("name"): item.get("template") for item in entry}
        if isinstance(named.get("default"), str):
            return str(named["default"])
    raise CheckpointError(f'{path}: chat_template is neither a text nor a list with one named "default"')


def _special_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by name; in the file each is a text or an object with its `content`."""
    tokens = {}
    for name in _SPECIAL_TOKENS:
        value = tokenizer_config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            tokens[name] = value
    return tokens


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter this escapes no HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
