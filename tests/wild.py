"""Wild messages of any type, made by its descriptor: values at and past every edge, and bytes that are no message.

All that is random comes from the `random.Random` given, so that a seed makes the same messages again.
"""

import math
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from nanoserve.arrays import pack_int32

_MAX_DEPTH = 5
_INT_EDGES = (0, 1, -1, 2, 15, 16, 17, 20, 21, 64, 255, 256, 768, 2048, 65_536, 2**31 - 1, -(2**31))
_WIDE_EDGES = (2**32, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1)
_REALS = (0.0, -0.0, 1.0, 0.5, -1.0, 2.0, 1e-45, 5e-324, 1e-38, 1e-7, 3.4e38, 1e308, 100.0, -100.0)
_UNREAL = (math.nan, math.inf, -math.inf)
_WORDS = (
    "",
    "a",
    "\0",
    "What is 123 + 45?",
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "\U0001f600\u200d\u202e\u0301",
    "\ud7ff\ufffd",
    "{{ messages }}{% endif %}",
    '{"type": "object"}',
    '{"$ref": "#"}',
    "(a|b)*c",
    "(((a{1,99}){1,99}){1,99})",
    'start: "a" start | "b"',
    "enable_thinking",
    "messages",
    "../../etc/passwd",
)
_LENGTHS = (1, 255, 256, 257, 1024, 1025, 20_000, 70_000)
_INT_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31),
}


def wild_message(rng: random.Random, descriptor: Descriptor, depth: int = 0) -> Message:
    """A message with a random choice of its fields set, each to anything that its type can hold."""
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if rng.random() < 0.5:
            _set_wild(rng, message, field, depth)
    return message


def disturb(rng: random.Random, message: Message) -> None:
    """Makes one field of a message wild, or of one that it holds."""
    held = [message]
    for entry in held:  # which grows
        held += [value for value in _submessages(entry) if len(held) < 100]
    chosen = rng.choice(held)
    if chosen.DESCRIPTOR.fields:
        _set_wild(rng, chosen, rng.choice(chosen.DESCRIPTOR.fields), depth=1)


def _submessages(message: Message) -> list[Message]:
    found: list[Message] = []
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        found += value if field.is_repeated else [value]
    return found


def _set_wild(rng: random.Random, message: Message, field: FieldDescriptor, depth: int) -> None:
    value: Any = getattr(message, field.name)
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        key, of = entry.fields_by_name["key"], entry.fields_by_name["value"]
        for _ in range(_how_many(rng, depth)):
            if of.message_type is None:
                value[_scalar(rng, key)] = _scalar(rng, of)
            else:
                value[_scalar(rng, key)].MergeFrom(_inner(rng, of.message_type, depth))
    elif field.is_repeated:
        message.ClearField(field.name)
        count = _how_many(rng, depth)
        if entry is None:
            value = getattr(message, field.name)
            value.extend(_scalar(rng, field) for _ in range(count))
        else:
            getattr(message, field.name).extend(_inner(rng, entry, depth) for _ in range(min(count, 50)))
    elif entry is not None:
        message.ClearField(field.name)
        value = getattr(message, field.name)
        value.SetInParent()
        value.MergeFrom(_inner(rng, entry, depth))
    else:
        setattr(message, field.name, _scalar(rng, field))


def _inner(rng: random.Random, descriptor: Descriptor, depth: int) -> Message:
    if depth >= _MAX_DEPTH:
        return GetMessageClass(descriptor)()
    return wild_message(rng, descriptor, depth + 1)


def _how_many(rng: random.Random, depth: int) -> int:
    return rng.choice((0, 1, 1, 2, 3, 17, 65, 1025 if depth < 2 else 4))


def _scalar(rng: random.Random, field: FieldDescriptor) -> Any:
    kind = field.cpp_type
    if kind in _INT_RANGES:
        low, high = _INT_RANGES[kind]
        value = rng.choice((rng.choice(_INT_EDGES), rng.choice(_WIDE_EDGES), rng.randrange(800)))
        return value if low <= value < high else rng.randrange(low, high)
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice((rng.choice(_REALS), rng.choice(_UNREAL), rng.uniform(-2, 2), rng.uniform(0, 1)))
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    return wild_bytes(rng) if field.type == FieldDescriptor.TYPE_BYTES else wild_text(rng)


def wild_text(rng: random.Random) -> str:
    """Short words, some of which mean something somewhere, and now and then a long text."""
    if rng.random() < 0.85:
        return rng.choice(_WORDS)
    return rng.choice(("x", "é", "\U0001f600", "1 ")) * rng.choice(_LENGTHS)


def wild_bytes(rng: random.Random) -> bytes:
    """Anything: int32 of any range, halves of them, and now and then a great many."""
    choices: Sequence[Callable[[], bytes]] = (
        lambda: b"",
        lambda: pack_int32([rng.randrange(8) for _ in range(rng.randrange(6))]),
        lambda: pack_int32([rng.choice(_INT_EDGES) for _ in range(rng.randrange(6))]),
        lambda: rng.randbytes(rng.randrange(12)),
        lambda: struct.pack("<4f", math.nan, math.inf, 1e-45, 1.0),
        lambda: rng.randbytes(rng.choice(_LENGTHS)),
    )
    return rng.choice(choices)()


def garble(rng: random.Random, data: bytes, descriptor: Descriptor) -> bytes:
    """Bytes that once were a message of that type: cut, flipped, stuffed with what does not belong."""
    position = rng.randrange(len(data) + 1)
    strings = [field for field in descriptor.fields if field.type == FieldDescriptor.TYPE_STRING]
    choices: list[Callable[[], bytes]] = [
        lambda: data[:position],
        lambda: data[:position] + rng.randbytes(rng.randrange(1, 20)) + data[position:],
        lambda: rng.randbytes(rng.choice(_LENGTHS)),
        lambda: data + data,
        lambda: data + _field(15_000, rng.randbytes(8)),  # a number that no message has
        lambda: data + b"\x0b" * rng.choice((3, 99, 101, 5000)),  # groups that never end
        lambda: data + b"\x0a\xff\xff\xff\xff\x0f",  # a length past the end
        lambda: data + b"\xff" * 11,  # a varint without an end
        lambda: _nested(rng.choice((1, 20, 101, 2000)), rng.choice([1, 2, 3, 4, 5, 6])),
    ]
    if strings:
        field = rng.choice(strings)
        choices.append(lambda: data + _field(field.number, b"\xff\xfe\xc0"))  # no UTF-8
    return rng.choice(choices)()


def _nested(depth: int, number: int) -> bytes:
    """Messages within messages, each in the field of that number."""
    data = b""
    for _ in range(depth):
        data = _field(number, data)
    return data


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
