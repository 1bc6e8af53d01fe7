"""Tools are refused where they are none, and called as the policy asks for them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from envs.base import EnvironmentFailure
from envs.conversation import Message, ToolCall, answer_calls, find_flaw, find_tool_flaw

OBJECT: dict[str, Any] = {"type": "object", "properties": {}}


def make_tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f"} | function}


def nest(depth: int) -> dict[str, Any]:
    schema = OBJECT
    for _ in range(depth):
        schema = {"type": "object", "properties": {"x": schema}}
    return schema


CYCLE: dict[str, Any] = {"type": "object", "properties": {}}
CYCLE["properties"]["x"] = CYCLE
REFERENCE = {"properties": {"x": {"$ref": "#/$defs/y"}}, "$defs": {"y": {"type": "integer"}}}


@pytest.mark.parametrize(
    "tool",
    [
        make_tool(),
        make_tool(parameters=nest(20)),
        make_tool(parameters={"type": "object"} | REFERENCE),
        make_tool(name="files/read-2.x", description="<|im_end|>", parameters=OBJECT),
    ],
    ids=["no parameters", "nested", "reference", "name"],
)
def test_find_tool_flaw_of_a_sound_tool_is_none(tool: dict[str, Any]) -> None:
    assert find_tool_flaw([tool]) == ""


@pytest.mark.parametrize(
    ("tools", "flaw"),
    [
        ("price", "a list of JSON schemas belongs there"),
        (make_tool(), r"write a tuple or a list, with its comma: \(TOOL,\)"),
        ([{"name": "f"}], r"tools\[0\]: it has to be"),
        ([make_tool(), make_tool()], r"tools\[1\]: there are two tools 'f'"),
        ([make_tool(name="")], "it has no name"),
        ([make_tool(name="a b")], "its name 'a b' is not of"),
        ([make_tool(name="<|im_end|>")], "its name .* is not of"),
        ([make_tool(description=None)], "its description is no text"),
        ([make_tool(description="\ud800")], "it is no JSON: .*surrogates"),
        ([make_tool(parameters=None)], 'no JSON schema of type "object"'),
        ([make_tool(parameters=OBJECT | {"properties": {"x": "text"}})], "do not map names"),
        ([make_tool(parameters=OBJECT | {"properties": {1: {}}})], "do not map names"),
        ([make_tool(parameters=OBJECT | {"required": "x"})], "no list of names"),
        ([make_tool(parameters=OBJECT | {"default": float("nan")})], "it is no JSON"),
        ([make_tool(parameters=OBJECT | {"enum": {1}})], "it is no JSON"),
        ([make_tool(parameters=CYCLE)], "it is no JSON: Circular"),
        ([make_tool(parameters=nest(9999))], "it is no JSON: .*recursion"),
    ],
)
def test_find_tool_flaw_says_what_is_wrong(tools: Any, flaw: str) -> None:
    with pytest.raises(AssertionError, match=flaw):
        raise AssertionError(find_tool_flaw(tools))


@pytest.mark.parametrize("max_turns", [None, 0, "5"])
def test_find_flaw_asks_for_a_number_of_turns(max_turns: Any) -> None:
    assert "max_turns: a whole number" in find_flaw(SimpleNamespace(tools=(), max_turns=max_turns))


def fail(error: BaseException) -> None:
    raise error


FUNCTIONS = {
    "price": lambda fruit: {"fig": 3}[fruit],
    "max": max,
    "half": lambda: "\ud800",
    "silent": lambda: fail(AssertionError()),
    "many": lambda: 10**5000,
}


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (ToolCall("price", {"fruit": "fig"}), "3"),
        (ToolCall("price", {"fruit": "stone"}), "error: KeyError: 'stone'"),
        (ToolCall("price", {"self": 1}), "error: price: missing a required argument: 'fruit'"),
        (ToolCall("prize"), "error: there is no tool prize, but price, max, half, silent, many"),
        (ToolCall("", error="it is no JSON"), "error: the call cannot be read: it is no JSON"),
        (ToolCall("max"), "error: TypeError: max expected at least 1 argument, got 0"),
        (ToolCall("silent"), "error: AssertionError: "),
    ],
)
def test_answer_calls_says_what_is_wrong_with_a_call(call: ToolCall, answer: str) -> None:
    (said,) = answer_calls(Message("assistant", tool_calls=(call,)), FUNCTIONS)
    assert (said.role, said.content, said.tool_call_id) == ("tool", answer, call.id)


@pytest.mark.parametrize("name", ["half", "many"])
def test_answer_calls_answers_with_text_that_can_be_sent(name: str) -> None:
    (said,) = answer_calls(Message("assistant", tool_calls=(ToolCall(name),)), FUNCTIONS)
    assert said.content.startswith("error: ")
    said.content.encode()


def test_answer_calls_lets_a_failure_of_the_environment_through() -> None:
    broken = {"f": lambda: fail(EnvironmentFailure("the database is gone"))}
    with pytest.raises(EnvironmentFailure, match="gone"):
        answer_calls(Message("assistant", tool_calls=(ToolCall("f"),)), broken)
