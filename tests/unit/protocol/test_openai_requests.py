"""Requests in OpenAI's form are read, or refused in a sentence."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.openai_requests import RequestError, read_chat_request, read_completion_request
from tests.fixtures.conversations import TOOL, say

QUESTION = [say("user", "2 + 2?")]


def read(messages: Any = QUESTION, **others: Any) -> Any:
    return read_chat_request(json.dumps({"messages": messages} | others).encode())


def test_request_of_the_official_form_is_read() -> None:
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "calculate", "arguments": '{"expression": "2+2"}'},
    }
    asked = read(
        [
            say("developer", "Count."),
            {"role": "user", "content": [{"type": "text", "text": "2 + "}, {"text": "2?"}]},
            {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
            say("tool", "4", tool_call_id="c1"),
        ],
        model="policy",
        tools=[TOOL],
        max_tokens=9,
        n=2,
        stop=".",
        temperature=0.3,
        user="me",
    )
    assert [message["role"] for message in asked.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
    ]
    assert asked.messages[1]["content"] == "2 + 2?"
    function = asked.messages[2]["tool_calls"][0]["function"]
    assert function == {"name": "calculate", "arguments": {"expression": "2+2"}}
    assert asked.messages[3]["name"] == "calculate"
    wanted = asked.wanted
    assert (wanted.max_tokens, wanted.choices, wanted.stops) == (9, 2, (".",))
    assert wanted.ignored == ("temperature",)


@pytest.mark.parametrize(
    ("others", "param"),
    [
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"guided_json": {"a": 1}}, "guided_json"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["", "a"]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
    ],
)
def test_parameter_that_cannot_be_had_is_refused(others: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError, match=param) as raised:
        read(**others)
    assert raised.value.to_json()["error"]["param"] == param


@pytest.mark.parametrize(
    "others",
    [{"logit_bias": None}, {"tool_choice": "none"}, {"echo": False}, {"seed": 1}, {"store": True}],
)
def test_parameter_that_changes_nothing_is_taken(others: dict[str, Any]) -> None:
    assert read(**others).tools == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "logprobs": 5}, "logprobs"),
    ],
)
def test_completion_that_cannot_be_had_is_refused(body: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError, match=param) as raised:
        read_completion_request(json.dumps(body).encode())
    assert raised.value.param == param


def test_completion_of_the_official_form_is_read() -> None:
    body = {"model": "policy", "prompt": ["a"], "max_tokens": 3, "logprobs": 0}
    asked = read_completion_request(json.dumps(body).encode())
    assert (asked.prompt, asked.wanted.max_tokens, asked.wanted.log_probs) == ("a", 3, True)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "there are none"),
        ([say("user", "?"), say("assistant", "4")], "the policy's own"),
        ([say("narrator", "?")], "'narrator' is no role"),
        ([say("tool", "4", tool_call_id="c9")], "'c9' is of no call before it"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "'image_url'"),
        ([{"content": "?"}], "missing required field `role`"),
        ("hello", "Expected `array`"),
    ],
)
def test_messages_that_are_none_are_refused(messages: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words) as raised:
        read(messages)
    assert raised.value.status == 400


def test_other_model_is_not_found() -> None:
    with pytest.raises(RequestError, match="'policy'") as raised:
        read(model="gpt-5")
    assert (raised.value.status, raised.value.code) == (404, "model_not_found")


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=3,
)


@settings(max_examples=30)
@given(
    st.dictionaries(
        st.sampled_from(["messages", "tools", "n", "stop", "model", "stream", "logprobs", "user"]),
        json_values,
    )
    | json_values
)
def test_no_body_is_more_than_refused(body: Any) -> None:
    with suppress(RequestError):
        read_chat_request(json.dumps(body).encode())
