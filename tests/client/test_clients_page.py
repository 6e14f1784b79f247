"""What docs/clients.md has grpcurl call, called as grpcurl does: with nothing but what the server reflects."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from nanoserve_client.errors import error_from_rpc
from nanoserve_client.supervisor import LocalServer

pytestmark = pytest.mark.e2e
PAGE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
COMMANDS = re.findall(r"^\$ (grpcurl (?:.|\n)*?)(?=\n\$|\n```|\nERROR)", PAGE, re.MULTILINE)
CALLS = [command for command in COMMANDS if "describe" not in command]


@pytest.fixture(scope="module")
def channel() -> Iterator[grpc.Channel]:
    with LocalServer() as server, grpc.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture(scope="module")
def reflected(channel: grpc.Channel) -> DescriptorPool:
    return DescriptorPool(ProtoReflectionDescriptorDatabase(channel))


def call(channel: grpc.Channel, reflected: DescriptorPool, command: str) -> list[Message]:
    """The answers to a grpcurl command, wherever it would go."""
    words = shlex.split(command.replace("\\\n", " "))
    body = words[words.index("-d") + 1] if "-d" in words else "{}"
    service, name = words[-1].split("/")
    method = reflected.FindServiceByName(service).methods_by_name[name]
    request = json_format.Parse(body, GetMessageClass(method.input_type)())
    answer = GetMessageClass(method.output_type).FromString
    kind = channel.unary_stream if method.server_streaming else channel.unary_unary
    answers = kind(f"/{words[-1]}", type(request).SerializeToString, answer)(request, timeout=60)
    return list(answers) if method.server_streaming else [answers]


@pytest.mark.parametrize("command", [command for command in CALLS if "topP" not in command])
def test_what_grpcurl_is_told_to_ask_is_answered(
    channel: grpc.Channel, reflected: DescriptorPool, command: str
) -> None:
    answers = call(channel, reflected, command)
    assert answers
    if command.endswith("/Generate"):
        assert answers[-1].WhichOneof("event") == "completed"


def test_what_grpcurl_is_told_is_wrong_is_what_the_page_shows(
    channel: grpc.Channel, reflected: DescriptorPool
) -> None:
    (command,) = [command for command in CALLS if "topP" in command]
    with pytest.raises(grpc.RpcError) as failure:
        call(channel, reflected, command)
    error = error_from_rpc(failure.value)
    assert f"  Message: {error.message}\n" in PAGE
    shown = json.loads(PAGE[PAGE.index("1)\t{") + 3 :].partition("```")[0])
    assert shown["field_violations"] == [
        {"field": violation.field, "description": violation.description} for violation in error.violations
    ]


def test_the_page_describes_what_the_server_reflects(reflected: DescriptorPool) -> None:
    described = [command.split()[-1] for command in COMMANDS if "describe" in command]
    assert described
    for name in described:
        assert reflected.FindMessageTypeByName(name).fields


def test_there_are_commands_of_every_kind() -> None:
    assert len(CALLS) > 6
    assert {command.split("/")[-1] for command in CALLS} == {"Generate", "Tokenize", "GetModel", "GetLoad"}
