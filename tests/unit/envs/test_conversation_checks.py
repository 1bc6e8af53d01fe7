"""What an environment or its expert cannot say is refused, in one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from envs.conversation import Message, ToolCall
from envs.conversation_checks import check_answer, check_opening
from envs.user_errors import UserCodeError

QUESTION = Message("user", "?")


def call(*calls: Any) -> Message:
    return Message("assistant", tool_calls=calls)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (QUESTION, "where a list of messages belongs"),
        ([], "gave no messages as messages"),
        ([{"role": "user", "content": "x"}], r"as messages\[0\], where a Message belongs"),
        ([Message(["user"], "x")], r"as messages\[0\].role, which is one of"),
        ([Message("user", "x", reasoning=3)], "reasoning, where a text belongs"),
        ([Message("user", "x", reasoning="\ud800")], "reasoning, which UTF-8 cannot say"),
        ([Message("user", "x", reasoning="so")], "only the assistant has a reasoning"),
        ([Message("assistant", tool_calls="f"), QUESTION], "where a tuple of ToolCall belongs"),
        ([call({"name": "f"}), QUESTION], r"tool_calls\[0\], where a ToolCall belongs"),
        ([call(ToolCall("f", "x")), QUESTION], "arguments, which map names to values of JSON"),
        ([call(ToolCall("f", {"x": {1}})), QUESTION], "it is no JSON: .*set"),
        ([call(ToolCall("f", {"x": float("inf")})), QUESTION], "it is no JSON"),
        ([call(ToolCall("f", {"x": "\ud800"})), QUESTION], "it is no JSON: .*surrogates"),
        ([call(ToolCall("f"), ToolCall("f")), Message("tool", "1"), QUESTION], "tool_call_id is"),
        ([Message("tool", "1"), QUESTION], "called no tool"),
    ],
)
def test_opening_that_cannot_be_said_is_refused(messages: Any, reason: str) -> None:
    with pytest.raises(UserCodeError, match=reason):
        check_opening(messages)


def test_results_in_an_opening_get_the_ids_of_their_calls() -> None:
    two = call(ToolCall("f", id="a"), ToolCall("g", id="b"))
    results = [Message("tool", "2", tool_call_id="b"), Message("tool", "1", tool_call_id="a")]
    one = [call(ToolCall("f")), Message("tool", "3")]
    opening = check_opening([QUESTION, two, *results, *one, QUESTION])
    assert [each.tool_call_id for each in opening if each.role == "tool"] == [
        "call00001",
        "call00000",
        "call00002",
    ]


@pytest.mark.parametrize(
    ("message", "reason"),
    [("Hello", "where a Message belongs"), (QUESTION, "has the role user"), (None, "gave None")],
)
def test_expert_that_says_no_message_is_refused(message: Any, reason: str) -> None:
    with pytest.raises(UserCodeError, match=reason):
        check_answer(message)
