"""Calls are read in each form, and what is none is said to be none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.tool_calls import PARSERS, format_hermes
from tests.fixtures.conversations import arguments, texts

CALL = '{"name": "f", "arguments": {"x": 1}}'

forms = st.sampled_from(sorted(PARSERS))


@given(forms, texts | st.text())
def test_any_text_can_be_read(form: str, text: str) -> None:
    content, calls = PARSERS[form](text)
    assert isinstance(content, str)
    for call in calls:
        assert call.error or call.name
        json.dumps(call.arguments).encode()


@given(st.lists(st.tuples(st.text(min_size=1, max_size=5), arguments), min_size=1, max_size=3))
def test_calls_that_were_written_are_read(calls: list[tuple[str, dict[str, Any]]]) -> None:
    if "</tool_call>" in str(calls):
        return
    _, read = PARSERS["hermes"](format_hermes(calls))
    assert [(call.name, call.arguments) for call in read] == calls


@pytest.mark.parametrize(
    ("form", "text", "content", "names"),
    [
        ("hermes", f"So: <tool_call>{CALL}</tool_call>", "So: ", ["f"]),
        ("hermes", f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}", "", ["f", "f"]),
        ("hermes", "no call", "no call", []),
        ("llama3", '{"name": "f", "parameters": {}}', "", ["f"]),
        ("llama3", f"<|python_tag|>{CALL}; {CALL}", "", ["f", "f"]),
        ("llama3", "a set {1, 2}", "a set {1, 2}", []),
        ("mistral", f"[TOOL_CALLS] [{CALL}, {CALL}]", "", ["f", "f"]),
        ("mistral", '[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g[ARGS]{}', "", ["f", "g"]),
        ("mistral", '[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{"x": 1}', "", ["f"]),
    ],
)
def test_calls_are_found_with_the_words_before_them(
    form: str, text: str, content: str, names: list[str]
) -> None:
    read_content, calls = PARSERS[form](text)
    assert (read_content, [call.name for call in calls]) == (content, names)
    assert not any(call.error for call in calls)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("f(1)", "it is no JSON"),
        ("[1]", "it has no name"),
        ('{"name": "", "arguments": {}}', "it has no name"),
        ('{"name": 1, "arguments": {}}', "it has no name"),
        ('{"name": "f"}', "its arguments are no object"),
        ('{"name": "f", "arguments": "x"}', "its arguments are no object"),
        ('{"name": "f", "arguments": {"x": NaN}}', "NaN is no number"),
        ('{"name": "f", "arguments": {"x": -1e999}}', "-1e999 is too large a number"),
        ('{"name": "f", "arguments": {"x": ' + "[" * 99 + "]" * 99 + "}}", "nested too deeply"),
        ('{"name": "f", "arguments": {"x": "\\ud800"}}', "half a character"),
        (CALL + " and", "there is more after its JSON"),
        ('{"name": "f", "arguments": {"x": ' + "[" * 10**5, "it is no JSON"),
        ('{"name": "f", "arguments": {"x": ' + "1" * 5000 + "}}", "it is no JSON"),
    ],
)
def test_call_that_cannot_be_made_says_why(body: str, error: str) -> None:
    _, calls = PARSERS["hermes"](f"<tool_call>{body}</tool_call>")
    assert len(calls) == 1
    assert error in calls[0].error
