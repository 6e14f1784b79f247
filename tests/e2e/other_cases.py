"""What each field of a chat and of the other calls' requests does that a client can see."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from contract import Api, digest, refused
from generate_cases import VIRTUAL, Case
from processes import running

from nanoserve_client.supervisor import LocalServer

_ANY_PORT = "--listen=127.0.0.1:0"
MAX_NUM_DECODE_STEPS = 8
"""Of a plan, by the executor's default."""
THINKING_TEMPLATE = """{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif -%}
{%- endif -%}
"""
"""The shipped model's, with the option that Qwen3's takes."""
_USER = "<|im_start|>user\nHello<|im_end|>\n"
_REPLY = "<|im_start|>assistant\n"

Read = Callable[..., bytes]
"""The digest of the ids that a prompt comes to, by Generate or by Tokenize."""


def read_by_generate(api: Api, **prompt: Any) -> bytes:
    return api.generate(stop={"max_tokens": 1}, **prompt).prompt_digest


def read_by_tokenize(api: Api, **prompt: Any) -> bytes:
    return digest(api.tokenize(**prompt))


def renders(read: Read, text: str, *, role: str = "user", content: str = "Hello", **fields: Any) -> Case:
    """The chat comes to what the template makes of it."""

    def case(api: Api) -> None:
        chat = {"messages": [{"role": role, "content": content}], **fields}
        assert read(api, chat=chat) == digest(api.tokenize(text=text))

    return case


def chat_cases(prefix: str, read: Read) -> dict[str, Case]:
    """For each field of a Chat at `prefix`."""
    system = _USER.replace("user", "system")
    return {
        f"{prefix}.messages.role": renders(read, system + _REPLY, role="system"),
        f"{prefix}.messages.content": renders(read, _USER.replace("Hello", "é") + _REPLY, content="é"),
        f"{prefix}.template_options": renders(
            read, f"{_USER}{_REPLY}<think>\n\n</think>\n\n", template_options={"enable_thinking": False}
        ),
        f"{prefix}.add_generation_prompt": renders(read, _USER, add_generation_prompt=False),
    }


def model_of(method: str, **fields: Any) -> Case:
    """The served model's name is taken, another is refused."""

    def case(api: Api) -> None:
        api.ask(method, model=api.ask("GetModel").model, **fields)
        with refused("model", grpc.StatusCode.NOT_FOUND):
            api.ask(method, model="another", **fields)

    return case


def tokenize_text(api: Api) -> None:
    ids = api.tokenize(text="Hello, world")
    assert len(ids) > 1
    assert api.ask("Detokenize", token_ids=ids).text == "Hello, world"


def skip_special_tokens(api: Api) -> None:
    ids = api.tokenize(text="<|im_start|>Hello")
    assert api.ask("Detokenize", token_ids=ids).text == "<|im_start|>Hello"
    assert api.ask("Detokenize", token_ids=ids, skip_special_tokens=True).text == "Hello"


def interval_seconds(api: Api) -> None:
    often = api.stream("WatchLoad", interval_seconds=0.05)
    assert len(list(itertools.islice(often, 5))) == 5
    often.cancel()
    seldom = api.stream("WatchLoad", within=1.0, interval_seconds=3600)
    assert next(seldom).load.num_total_blocks
    with pytest.raises(grpc.RpcError) as end:
        next(seldom)
    assert end.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    with refused("interval_seconds"):
        next(api.stream("WatchLoad", interval_seconds=0.01))


def drain_timeout(api: Api) -> None:
    """Of a server of its own, which serves nothing more then."""
    with refused("timeout_seconds"):
        api.ask("Drain", timeout_seconds=math.nan)
    with LocalServer(executor_flags=VIRTUAL) as server:
        drained = Api(server.address)
        endless = drained.stream("Generate", text="x", stop={"max_tokens": 2000, "ignore_eos": True})
        next(endless)
        assert drained.ask("Drain", timeout_seconds=0.1).num_aborted_requests == 1
        drained.close()


def executor(api: Api) -> None:
    """Of a server of its own, which goes on over there."""
    with refused("executor"):
        api.ask("SwitchExecutor", executor="elsewhere")
    with refused("executor", grpc.StatusCode.FAILED_PRECONDITION):
        api.ask("SwitchExecutor", executor="unix:/elsewhere")
    with LocalServer(executor_flags=VIRTUAL) as server, running("executor_svc", *VIRTUAL, _ANY_PORT) as other:
        switched = Api(server.address)
        address = other.event("listening")["address"]
        assert switched.ask("SwitchExecutor", executor=address).epoch == 1
        server.kill()
        switched.close()


def num_steps(api: Api) -> None:
    api.ask("StartProfile", num_steps=3)
    api.generate(text="x", stop={"max_tokens": 60, "ignore_eos": True})
    assert 3 <= api.ask("StopProfile").num_steps < 3 + MAX_NUM_DECODE_STEPS
    with refused("num_steps"):
        api.ask("StartProfile", num_steps=201)
