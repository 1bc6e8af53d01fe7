"""Our parsers of tool calls read what vLLM's read."""

from __future__ import annotations

import json
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast
from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser
from vllm.tool_parsers.llama_tool_parser import Llama3JsonToolParser
from vllm.tool_parsers.mistral_tool_parser import MistralToolParser

from protocol.tool_calls import PARSERS
from tests.fixtures.conversations import arguments
from tests.fixtures.templates import byte_tokenizer

THEIRS = {
    "hermes": Hermes2ProToolParser,
    "llama3": Llama3JsonToolParser,
    "mistral": MistralToolParser,
}
CALL = '{"name": "f", "arguments": {"x": 1}}'
FRAGMENTS = {
    "hermes": ["<tool_call>", "</tool_call>", CALL, '{"name": "f"}', "{}", "words", "\n"],
    # vLLM passes over a call that follows another one at once.
    "llama3": [f"{CALL}; ", '{"name": "g", "parameters": {}}\n', "; ", "words", "\n"],
}

Calls = list[tuple[str, dict[str, Any]]]


@cache
def vllm_parser(form: str) -> Any:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer())
    return THEIRS[form](tokenizer)


def read_by_vllm(form: str, text: str) -> Calls:
    """Return the calls that vLLM's parser finds; none where it finds one unreadable."""
    request = SimpleNamespace(tools=None, tool_choice="auto")
    found = vllm_parser(form).extract_tool_calls(text, request)
    calls = [call.function for call in found.tool_calls]
    return [(call.name, json.loads(call.arguments)) for call in calls]


def read_by_us(form: str, text: str) -> Calls:
    """Return the calls that our parser finds; none where it finds one unreadable."""
    _, calls = PARSERS[form](text)
    if any(call.error for call in calls):
        return []
    return [(call.name, call.arguments) for call in calls]


@pytest.mark.parametrize("form", FRAGMENTS)
@given(st.data())
def test_calls_among_other_text_are_those_that_vllm_finds(form: str, data: st.DataObject) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from(FRAGMENTS[form]), max_size=6)))
    assert read_by_us(form, text) == read_by_vllm(form, text)


@pytest.mark.parametrize(
    ("form", "template"),
    [
        ("hermes", "<tool_call>\n{call}\n</tool_call>"),
        ("llama3", "{call}"),
        ("mistral", "[TOOL_CALLS] [{call}]"),
    ],
)
@given(arguments)
def test_arguments_are_those_that_vllm_reads(
    form: str, template: str, values: dict[str, Any]
) -> None:
    call = json.dumps({"name": "f", "arguments": values}, ensure_ascii=False)
    if "<tool_call>" in call or "</tool_call>" in call:
        return
    text = template.replace("{call}", call)
    assert read_by_us(form, text) == read_by_vllm(form, text) == [("f", values)]
