"""Templates are rendered as transformers renders them, and their thoughts are found."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.chat_format import ChatFormat
from protocol.chat_template import ChatTemplate
from tests.fixtures.chat_templates import ARGUMENTS, CHATML, TEMPLATES

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def compile_template(template: str, **changes: Any) -> ChatTemplate:
    return ChatTemplate(ChatFormat(template, SPECIAL, **changes))


def render_by_transformers(chat: ChatFormat, message: str) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": "user", "content": message}]
    if chat.system_prompt:
        messages.insert(0, {"role": "system", "content": chat.system_prompt})
    (rendered,), _ = render_jinja_template(
        [messages],
        chat_template=chat.template,
        add_generation_prompt=True,
        **chat.special_tokens | chat.arguments,
    )
    return rendered


@pytest.mark.parametrize("system", ["", " Be brief. "], ids=["", "system"])
@pytest.mark.parametrize("family", TEMPLATES)
def test_render_prompt_of_each_family_equals_transformers(family: str, system: str) -> None:
    """With arguments and without, with a message of the system and without."""
    for arguments in ({}, ARGUMENTS.get(family, {})):
        chat = ChatFormat(TEMPLATES[family], SPECIAL, arguments, system)
        try:
            render_by_transformers(chat, "x")
        except jinja2.TemplateError as error:
            with pytest.raises(ValueError, match=rf"model\.system_prompt: .*{error}"):
                ChatTemplate(chat)
        else:
            check_messages(chat)


def check_messages(chat: ChatFormat) -> None:
    template = ChatTemplate(chat)

    @settings(max_examples=10)
    @given(st.text() | st.just(' {"a": "<b>"} & \n'))
    def check(message: str) -> None:
        assert template.render_prompt(message) == render_by_transformers(chat, message)

    check()


@pytest.mark.parametrize(
    "template",
    [
        "{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x is defined }}",
        "{%- for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}"
        "{% if i > 4 %}{% break %}{% endif %}{%- endfor %}",
        "{{ strftime_now('%Y-%m-%d') }}",
        "{{ {'é': '<&>', 'a': [1, none]} | tojson }}",
        "{{ {'b': 'é', 'a': 1} | tojson(indent=2, ensure_ascii=true, sort_keys=true) }}",
        "{{ tools is none }}{{ documents is none }}{{ eos_token }}{{ pad_token is defined }}",
        "  {% if true %}\n  x\n  {% endif %}\n",
        "{{ 'a' | upper }}{{ messages[0].content | trim | length }}{{ [3, 1] | sort | join('-') }}",
        "{% macro f(x, y=2) %}{{ x ~ y ~ caller() }}{% endmacro %}{% call f(1) %}c{% endcall %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
        "{% endfor %}{{ ns.n }}{{ '%s' % ns.n }}",
    ],
)
def test_render_prompt_of_each_construct_equals_transformers(template: str) -> None:
    chat = ChatFormat(template + "{{ messages[-1].content }}", SPECIAL)
    assert ChatTemplate(chat).render_prompt("x") == render_by_transformers(chat, "x")


@pytest.mark.parametrize(
    ("family", "arguments", "thought"),
    [
        ("chatml", {}, ""),
        ("qwen3", {}, ""),
        ("qwen3", {"enable_thinking": False}, "<think>\n\n</think>\n\n"),
        ("qwen3", {"enable_thinking": True}, ""),
        ("qwen3-thinking", {}, "<think>\n"),
        ("no thinking", {}, "<think>\n\n</think>\n\n"),
        ("deepseek-r1", {}, "<think>\n"),
        ("deepseek-v3.1", {}, "<think></think>"),
        ("deepseek-v3.1", {"thinking": True}, "<think>"),
        ("smollm3", {"enable_thinking": False}, "<think>\n\n</think>\n"),
        ("granite-3", {"thinking": True}, ""),
    ],
)
def test_thought_is_what_the_generation_prompt_says_of_one(
    family: str, arguments: dict[str, Any], thought: str
) -> None:
    template = compile_template(TEMPLATES[family], arguments=arguments)
    assert template.thought == thought
    assert template.opens_thought == (thought.startswith("<think>") and "</think>" not in thought)


@pytest.mark.parametrize(
    ("family", "end"),
    [
        ("chatml", "<|im_end|>\n"),
        ("deepseek-r1", "</s>"),
        ("llama-3", "<|eot_id|>"),
        ("gemma-2", "<end_of_turn>\n"),
        ("phi-3", "<|end|>\n</s>"),
        ("gpt-oss", "<|return|>"),
    ],
)
def test_find_turn_end_is_what_follows_an_answer(family: str, end: str) -> None:
    assert compile_template(TEMPLATES[family]).find_turn_end() == end


@pytest.mark.parametrize(
    ("template", "changes", "message"),
    [
        ("{% if %}", {}, r"model\.name: the chat template is none: .*"),
        ("{% nonsense %}", {}, r"model\.name: the chat template is none: .*unknown tag 'nonsense'"),
        (
            "{{ raise_exception('tools only') }}",
            {},
            r"model\.name: the chat template refuses a conversation: tools only",
        ),
        ("{{ messages[0].content + 1 }}", {}, r"model\.name: .*: TypeError: .*"),
        ("{{ messages[7].content }}", {}, r"model\.name: .*no element 7"),
        ("{{ messages.append(1) }}", {}, r"model\.name: .*unsafe"),
        (
            "{{ messages[0].content | nonsense }}",
            {},
            r"model\.name: .*[Nn]o filter named 'nonsense'",
        ),
        ("hello", {}, r"model\.name: the chat template leaves the user's message out"),
        (
            TEMPLATES["gemma-2"],
            {"system_prompt": "Be brief."},
            r"model\.system_prompt: the chat template refuses a conversation: System role",
        ),
        (
            TEMPLATES["qwen3"],
            {"arguments": {"enable_thinkin": False}},
            r"model\.template_arguments\.enable_thinkin: .* takes enable_thinking$",
        ),
        (
            CHATML,
            {"arguments": {"messages": []}},
            r"model\.template_arguments\.messages: .* takes none; leave it out$",
        ),
    ],
)
def test_template_that_cannot_be_rendered_is_refused_in_a_sentence(
    template: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as refusal:
        compile_template(template, **changes)
    assert "\n" not in str(refusal.value)
