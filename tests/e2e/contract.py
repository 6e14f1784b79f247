"""The public contract as its descriptors tell it: the path of every field, and the bare stubs that keep what comes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
import xxhash
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from nanoserve.v1 import admin_pb2, inference_pb2, profile_pb2
from nanoserve.v1.admin_pb2_grpc import AdminServiceStub
from nanoserve.v1.inference_pb2_grpc import InferenceServiceStub
from nanoserve_client.errors import error_from_rpc
from nanoserve_client.events import CompletionBuilder
from nanoserve_client.results import Completion

FILES = tuple(module.DESCRIPTOR for module in (inference_pb2, admin_pb2, profile_pb2))
METHODS = [
    method for file in FILES for service in file.services_by_name.values() for method in service.methods
]
_PACKAGE = inference_pb2.DESCRIPTOR.package
_CALL_SECONDS = 60


def leaves(message: Descriptor, prefix: str = "") -> Iterator[tuple[str, FieldDescriptor]]:
    """Path and descriptor of each field below `message` that holds a value and no further message of the contract."""
    for field in message.fields:
        path = f"{prefix or message.name}.{field.name}"
        inner = contract_message(field)
        if inner is None or not inner.fields:
            yield path, field
        else:
            yield from leaves(inner, path)


def contract_message(field: FieldDescriptor) -> Descriptor | None:
    """The message that a field holds, where that is one of the contract: no map entry, no Struct."""
    inner = field.message_type
    if inner is None or inner.GetOptions().map_entry or inner.file.package != _PACKAGE:
        return None
    return inner


def messages_below(message: Descriptor) -> set[str]:
    """Names of this message and of all that it is made of."""
    inner = [found for field in message.fields if (found := contract_message(field)) is not None]
    return {message.name}.union(*map(messages_below, inner))


@dataclass(frozen=True, slots=True)
class Seen:
    """A value that came: where, and whether it says more than a field that was never set."""

    path: str
    value: Any
    is_set: bool


def values_of(message: Message, prefix: str = "") -> Iterator[Seen]:
    """What every field below `message` holds; nothing for one that is absent."""
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        path = f"{prefix or message.DESCRIPTOR.name}.{field.name}"
        held = getattr(message, field.name)
        is_many = isinstance(held, Sequence) and not isinstance(held, str | bytes)
        for value in held if is_many else [held]:
            if contract_message(field) is not None:
                yield from values_of(value, path)
            elif not isinstance(value, Mapping):
                is_set = is_many or field.has_presence or value != field.default_value
                yield Seen(path, value, is_set)


class Api:
    """The bare stubs on a running server; keeps every message that it answers."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
        self._stubs: list[Any] = [InferenceServiceStub(self._channel), AdminServiceStub(self._channel)]
        self.received: list[Message] = []

    def ask(self, method: str, **fields: Any) -> Any:
        """A call with one answer; the request is built of `fields`."""
        descriptor, call = self._method(method)
        response = call(descriptor.input_type._concrete_class(**fields), timeout=_CALL_SECONDS)
        self.received.append(response)
        return response

    def stream(self, method: str, *, within: float = _CALL_SECONDS, **fields: Any) -> Any:
        """A call with a stream of answers: iterated by the caller, who may also leave it, for so many seconds."""
        descriptor, call = self._method(method)
        return call(descriptor.input_type._concrete_class(**fields), timeout=within)

    def finish(self, stream: Any, *, logprobs: bool = False, prompt_logprobs: bool = False) -> Completion:
        """Reads a stream of Generate to its end."""
        builder = CompletionBuilder(n=None, logprobs=logprobs, prompt_logprobs=prompt_logprobs)
        for response in stream:
            self.received.append(response)
            builder.read(response)
        builder.end()
        return builder.completion()

    def generate(self, **fields: Any) -> Completion:
        """Generate, from beginning to end."""
        asked = fields.get("output", {})
        return self.finish(self.stream("Generate", **fields), **{name: True for name in asked})

    def load(self) -> admin_pb2.Load:
        """The load of this moment."""
        load: admin_pb2.Load = self.ask("GetLoad").load
        return load

    def tokenize(self, **prompt: Any) -> list[int]:
        """Token ids of a text or chat."""
        return list(self.ask("Tokenize", **prompt).token_ids)

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def _method(self, name: str) -> tuple[Any, Any]:
        descriptor = next(method for method in METHODS if method.name == name)
        return descriptor, next(getattr(stub, name) for stub in self._stubs if hasattr(stub, name))


def digest(token_ids: Sequence[int]) -> bytes:
    """What `prompt_digest` is for these ids."""
    return xxhash.xxh3_128_digest(np.array(token_ids, "<i4").tobytes())


@contextmanager
def refused(field: str, code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT) -> Iterator[None]:
    """The call of this block is refused with this status, whose details name just this field."""
    with pytest.raises(grpc.RpcError) as failure:
        yield
    error = error_from_rpc(failure.value)
    assert error.code is code, error
    assert [violation.field for violation in error.violations] == [field]
