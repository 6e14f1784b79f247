"""Prompts to token ids: as ids, as text, or as a chat."""

import asyncio
from typing import Any

import numpy as np
from google.protobuf import struct_pb2

from nanoserve.v1 import inference_pb2 as pb
from scheduler_svc.chat_template import TemplateFailed, is_reserved
from scheduler_svc.core.request import Int32Array
from scheduler_svc.errors import InvalidRequest
from scheduler_svc.tokenizer import Tokenizer
from scheduler_svc.validation import check_token_ids

# Longer prompts are rendered and tokenized in a thread, so that streams go on meanwhile.
_MAX_BYTES_ON_LOOP = 16_384
_MAX_MESSAGES = 10_000
_MAX_TEMPLATE_OPTIONS_BYTES = 64 * 1024
# Unicode normalisation makes a text shorter by this factor at most.
_MAX_SHRINKAGE = 4
# Several times what a token of most texts has. Of longer texts the beginning alone is tokenized first.
_MANY_CHARACTERS = 16


class PromptReader:
    """Turns prompts into token ids. Errors are InvalidRequest, naming the field."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    async def read(
        self, request: pb.GenerateRequest | pb.TokenizeRequest, max_tokens: int, vocab_size: int
    ) -> Int32Array:
        """The token ids of the prompt that is set. One that must come to over `max_tokens` is refused unread."""
        kind = request.WhichOneof("prompt")
        if kind is None:
            raise InvalidRequest("prompt", "must be set")
        if isinstance(request, pb.GenerateRequest) and kind == "token_ids":
            num_ids = len(request.token_ids.ids)
            if num_ids > max_tokens:
                raise InvalidRequest("prompt", f"has {num_ids} tokens, must have fewer than {max_tokens}")
            return check_token_ids("token_ids.ids", request.token_ids.ids, vocab_size)
        if kind == "chat":
            _check_size(request.chat)
        if request.ByteSize() > _MAX_BYTES_ON_LOOP:
            return await asyncio.to_thread(self._tokenize, request, max_tokens)
        return self._tokenize(request, max_tokens)

    def _tokenize(self, request: pb.GenerateRequest | pb.TokenizeRequest, max_tokens: int) -> Int32Array:
        text = self._render(request.chat) if request.WhichOneof("prompt") == "chat" else request.text
        if len(text) > max_tokens * self._tokenizer.max_token_bytes * _MAX_SHRINKAGE:
            raise InvalidRequest(
                "prompt", f"has {len(text)} characters, must come to {max_tokens} tokens at most"
            )
        beginning = text[: max_tokens * _MANY_CHARACTERS]
        # What follows can change the last tokens of it, but not half of them.
        if len(beginning) < len(text) and len(self._tokenizer.encode(beginning)) > 2 * max_tokens:
            raise InvalidRequest("prompt", f"must come to {max_tokens} tokens at most")
        return np.array(self._tokenizer.encode(text), np.int32)

    def _render(self, chat: pb.Chat) -> str:
        template = self._tokenizer.chat_template
        if template is None:
            raise InvalidRequest("chat", "the model has no chat template")
        if not chat.messages:
            raise InvalidRequest("chat.messages", "must not be empty")
        for index, message in enumerate(chat.messages):
            if not message.role:
                raise InvalidRequest(f"chat.messages[{index}].role", "must not be empty")
        options = {name: plain_value(value) for name, value in chat.template_options.fields.items()}
        for name in options:
            if is_reserved(name):
                raise InvalidRequest(f"chat.template_options.{name}", "is set by the server")
        opens_reply = chat.add_generation_prompt if chat.HasField("add_generation_prompt") else True
        messages = [{"role": message.role, "content": message.content} for message in chat.messages]
        try:
            return template.render(messages, options, add_generation_prompt=opens_reply)
        except TemplateFailed as error:
            raise InvalidRequest("chat", f"the chat template refuses it: {error}") from error


def _check_size(chat: pb.Chat) -> None:
    """What a template would take long over, whatever it makes of it."""
    if len(chat.messages) > _MAX_MESSAGES:
        raise InvalidRequest("chat.messages", f"must be at most {_MAX_MESSAGES}, got {len(chat.messages)}")
    if chat.template_options.ByteSize() > _MAX_TEMPLATE_OPTIONS_BYTES:
        raise InvalidRequest(
            "chat.template_options", f"must have {_MAX_TEMPLATE_OPTIONS_BYTES} bytes at most"
        )


def plain_value(value: struct_pb2.Value) -> Any:
    """A JSON value as a template's author means it: whole numbers, which a Struct holds as floats, are integers."""
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "list_value":
            return [plain_value(entry) for entry in value.list_value.values]
        case "struct_value":
            return {name: plain_value(entry) for name, entry in value.struct_value.fields.items()}
    return None
