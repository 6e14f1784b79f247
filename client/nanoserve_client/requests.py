"""Python arguments to request messages: the only place that writes them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Any

from google.protobuf.message import Message as ProtoMessage

from nanoserve.bearer import Metadata
from nanoserve.v1 import admin_pb2
from nanoserve.v1 import inference_pb2 as pb
from nanoserve_client.errors import InvalidRequest
from nanoserve_client.options import GenerateOptions, Guided, Message, Messages, Prompt

_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty"),
    *("presence_penalty", "seed", "n"),
)
_STOP = ("max_tokens", "min_tokens", "ignore_eos", "include_stop_in_output")
_TRACE_HEADERS = ("traceparent", "tracestate")
_OUTPUT = ("logprobs", "prompt_logprobs")


def generate_request(prompt: Prompt, options: GenerateOptions) -> pb.GenerateRequest:
    """The Generate message; InvalidRequest names the argument that does not fit into it."""
    request = pb.GenerateRequest()
    _set_prompt(request, prompt, options)
    for name in ("request_id", "model", "priority", "cache_salt"):
        _set(request, name, getattr(options, name))
    _set_each(request.sampling, _SAMPLING, options)
    if options.logit_bias:
        with _naming("logit_bias"):
            request.sampling.logit_bias.update(dict(options.logit_bias))
    _set_each(request.stop, _STOP, options)
    _extend("stop", request.stop.strings.extend, _texts(options.stop))
    _extend("stop_token_ids", request.stop.token_ids.extend, options.stop_token_ids)
    _set_each(request.output, _OUTPUT, options)
    if options.guided is not None:
        if not isinstance(options.guided, Guided):
            raise InvalidRequest(f"guided: a Guided, not {type(options.guided).__name__}")
        _set_guided(request.guided, options.guided)
    return request


def trace_metadata(headers: Mapping[str, str] | None) -> Metadata:
    """Trace headers as metadata of a call; those that servers do not read are left out."""
    if headers is None:
        return ()
    if not isinstance(headers, Mapping):
        raise InvalidRequest(f"trace_headers: a mapping, not {type(headers).__name__}")
    metadata = tuple((name, value) for name, value in headers.items() if name in _TRACE_HEADERS)
    for name, value in metadata:
        if not isinstance(value, str) or not (value.isascii() and value.isprintable()):
            raise InvalidRequest(f"trace_headers[{name!r}]: must be printable ASCII")
    return metadata


def tokenize_request(
    prompt: str | Messages,
    template_options: Mapping[str, Any] | None,
    add_generation_prompt: bool | None,
    model: str,
) -> pb.TokenizeRequest:
    """The Tokenize message; InvalidRequest names the argument that does not fit into it."""
    request = pb.TokenizeRequest()
    _set(request, "model", model)
    options = GenerateOptions(template_options=template_options, add_generation_prompt=add_generation_prompt)
    _set_prompt(request, prompt, options)
    return request


def detokenize_request(
    token_ids: Iterable[int], skip_special_tokens: bool, model: str
) -> pb.DetokenizeRequest:
    """The Detokenize message; InvalidRequest where an id is no int32."""
    request = pb.DetokenizeRequest()
    _set(request, "model", model)
    _set(request, "skip_special_tokens", skip_special_tokens)
    _extend("token_ids", request.token_ids.extend, token_ids)
    return request


def get_model_request(model: str) -> pb.GetModelRequest:
    """The GetModel message; InvalidRequest where `model` is no text."""
    request = pb.GetModelRequest()
    _set(request, "model", model)
    return request


def switch_executor_request(executor: str) -> admin_pb2.SwitchExecutorRequest:
    """The SwitchExecutor message; InvalidRequest where `executor` is no text."""
    request = admin_pb2.SwitchExecutorRequest()
    _set(request, "executor", executor)
    return request


def check_messages(messages: Messages) -> Messages:
    """`messages`, where `chat` was called; InvalidRequest where they are something else or none at all."""
    listed = isinstance(messages, Sequence) and not isinstance(messages, str)
    if not (listed and messages and all(map(_is_message, messages))):
        raise InvalidRequest("messages: a list of messages, each with role and content, at least one")
    return messages


def _set_prompt(
    request: pb.GenerateRequest | pb.TokenizeRequest, prompt: Prompt, options: GenerateOptions
) -> None:
    if not isinstance(prompt, str) and not _is_sequence(prompt):
        raise InvalidRequest(f"prompt: text, token ids or messages, not {type(prompt).__name__}")
    if not isinstance(prompt, str) and len(prompt) > 0 and _is_message(prompt[0]):
        _set_chat(request.chat, prompt, options)
        return
    for name in ("template_options", "add_generation_prompt"):
        if getattr(options, name) is not None:
            raise InvalidRequest(f"{name}: only a chat prompt takes it")
    if isinstance(prompt, str):
        _set(request, "text", prompt)
    elif isinstance(request, pb.GenerateRequest):
        request.token_ids.SetInParent()
        _extend("prompt", request.token_ids.ids.extend, prompt)
    else:
        raise InvalidRequest("prompt: text or messages")


def _set_chat(chat: pb.Chat, messages: Iterable[Any], options: GenerateOptions) -> None:
    for index, message in enumerate(messages):
        with _naming(f"messages[{index}]"):
            if isinstance(message, Message):
                chat.messages.add(role=message.role, content=message.content)
            elif isinstance(message, Mapping) and set(message) == {"role", "content"}:
                chat.messages.add(role=message["role"], content=message["content"])
            else:
                raise ValueError(f"{message!r} has not exactly role and content")
    if options.template_options is not None:
        with _naming("template_options"):
            chat.template_options.update(dict(options.template_options))
    _set(chat, "add_generation_prompt", options.add_generation_prompt)


def _set_guided(guided: pb.GuidedParams, value: Guided) -> None:
    if value.json_schema is not None:
        with _naming("guided.json_schema"):
            guided.json_schema = value.schema_text
    elif value.choice is not None:
        guided.choice.SetInParent()
        _extend("guided.choice", guided.choice.texts.extend, _texts(value.choice))
    else:
        _set(guided, "regex", value.regex)
        _set(guided, "grammar", value.grammar)


def _is_message(value: object) -> bool:
    return isinstance(value, Message | Mapping)


def _is_sequence(value: object) -> bool:
    """Whether it has items in an order; arrays do, and need not be a Sequence. The items of bytes are no token ids."""
    if isinstance(value, Mapping | bytes | bytearray | memoryview) or not hasattr(value, "__getitem__"):
        return False
    try:
        return isinstance(value, Sized) and len(value) >= 0
    except TypeError:  # an array of no dimension
        return False


def _texts(value: str | Iterable[str]) -> Iterable[str]:
    return (value,) if isinstance(value, str) else value


def _set_each(message: ProtoMessage, names: Iterable[str], options: GenerateOptions) -> None:
    for name in names:
        _set(message, name, getattr(options, name))


def _set(message: ProtoMessage, name: str, value: object) -> None:
    if value is not None:
        with _naming(name):
            setattr(message, name, value)


def _extend(name: str, extend: Callable[[list[Any]], None], values: Iterable[Any]) -> None:
    with _naming(name):
        if listed := list(values):  # extending by nothing would make the submessage present
            extend(listed)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Protobuf refuses wrong types and ranges without saying for which argument."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{name}: is not valid Unicode at character {error.start}") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"{name}: {error}") from None
