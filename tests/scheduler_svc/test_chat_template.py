"""Chat templates, against what transformers makes of them."""

from pathlib import Path
from typing import Any

import pytest
from text_factory import raw_tokenizer

from nanoserve.checkpoint import CheckpointError, demo_checkpoint
from scheduler_svc.chat_template import ChatTemplate, TemplateFailed, load_chat_template

CHATML = """{% for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{% endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
QWEN3_LIKE = """{%- if tools %}{{- '<tools>' + tools | tojson + '</tools>' }}{%- endif %}
{%- set ns = namespace(last=messages|length - 1, seen=false) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if not ns.seen and message.role == "user" and message.content is string %}
        {%- set ns.seen = true %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content }}
    {%- if loop.index0 > ns.last %} late{% endif %}
    {%- if loop.last %}{{- eos_token }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- bos_token + '<|im_start|>assistant\\n' }}{%- endif %}"""
LOOP_CONTROLS = """{% for message in messages %}
{% if message.role == 'system' %}{% continue %}{% endif %}
{% if loop.index > 3 %}{% break %}{% endif %}
  {% generation %}{{ message.content | trim }}{% endgeneration %}
{{ message | tojson(indent=1) }} {{ {'b': 1, 'a': '<&é>'} | tojson(sort_keys=true) }}
{% endfor %}"""
TEMPLATES = {"chatml": CHATML, "qwen3": QWEN3_LIKE, "loop controls": LOOP_CONTROLS}
CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "hello"}],
    [{"role": "system", "content": "  be <b>brief</b> & kind\n"}, {"role": "user", "content": "你好 🙂"}],
    [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\n2"},
        {"role": "user", "content": ""},
        {"role": "tool", "content": '{"x": "y"}'},
    ],
]
SPECIAL = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"enable_thinking": False},
    {"tools": [{"type": "function", "name": "f <&>", "n": 3}]},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("opens_reply", [True, False])
@pytest.mark.parametrize("messages", CHATS)
@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
def test_a_chat_renders_as_with_transformers(
    source: str, messages: list[dict[str, str]], opens_reply: bool, options: dict[str, Any]
):
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw_tokenizer(), **SPECIAL)
    wanted = tokenizer.apply_chat_template(
        messages, chat_template=source, tokenize=False, add_generation_prompt=opens_reply, **options
    )
    template = ChatTemplate(source, SPECIAL)
    assert template.render(messages, options, add_generation_prompt=opens_reply) == wanted


@pytest.mark.parametrize("messages", CHATS[:2])
@pytest.mark.parametrize("opens_reply", [True, False])
def test_the_demo_models_chats_come_to_the_ids_that_transformers_makes(
    messages: list[dict[str, str]], opens_reply: bool
):
    from transformers import AutoTokenizer

    from scheduler_svc.tokenizer import load_tokenizer

    folder = demo_checkpoint()
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    assert ours.chat_template is not None
    text = ours.chat_template.render(messages, add_generation_prompt=opens_reply)
    assert text == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens_reply)
    encoded = theirs.apply_chat_template(messages, add_generation_prompt=opens_reply, return_dict=True)
    assert ours.encode(text) == encoded["input_ids"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('only user and assistant') }}", "only user and assistant"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{{ messages[0].__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "append"),
        ("{% for i in range(1000000) %}x{% endfor %}", "Range"),
    ],
)
def test_what_a_template_refuses_is_one_line_of_reason(source: str, reason: str):
    template = ChatTemplate(source, {})
    with pytest.raises(TemplateFailed, match=reason) as failure:
        template.render([{"role": "user", "content": "x"}])
    assert "\n" not in str(failure.value)


def test_the_jinja_file_comes_before_the_tokenizer_config(tmp_path: Path):
    config = {"chat_template": "from the config", "eos_token": {"content": "<end>"}}
    template = load_chat_template(tmp_path, config)
    assert template is not None
    assert template.render([]) == "from the config"
    (tmp_path / "chat_template.jinja").write_text("from the file {{ eos_token }}")
    template = load_chat_template(tmp_path, config)
    assert template is not None
    assert template.render([]) == "from the file <end>"


def test_of_several_named_templates_the_default_is_taken(tmp_path: Path):
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    template = load_chat_template(tmp_path, {"chat_template": named})
    assert template is not None
    assert template.render([]) == "plain"
    assert load_chat_template(tmp_path, {}) is None


@pytest.mark.parametrize("entry", ["{% if %}", [{"name": "tool_use", "template": "x"}], 7])
def test_a_broken_template_is_told_by_its_file(entry: object, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        load_chat_template(tmp_path, {"chat_template": entry})
