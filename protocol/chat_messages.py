"""Messages in OpenAI's form, and what is said in their place to a template that lacks a role.

A thought is `reasoning_content`, and the arguments of a call are an object, as chat templates take
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from protocol.tool_calls import RESULT_END, RESULT_START, describe_tools, format_hermes

ChatMessage = Mapping[str, Any]
"""A message with `role` and `content`, and maybe `reasoning_content`, `tool_calls`, `name`."""


def say_tools(
    messages: Sequence[dict[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Say tools, calls and results in words, for a template that has no form for them."""
    described = describe_tools(tools)
    others = list(messages)
    if others and others[0]["role"] == "system":
        described = f"{others.pop(0)['content']}\n\n{described}"
    said: list[dict[str, Any]] = [{"role": "system", "content": described}]
    previous_role = ""
    for message in others:
        role = message["role"]
        result = f"{RESULT_START}\n{message['content']}\n{RESULT_END}"
        if role == "tool" and previous_role == "tool":
            said[-1]["content"] += f"\n{result}"
        elif role == "tool":
            said.append({"role": "user", "content": result})
        else:
            said.append(_say_calls(message))
        previous_role = role
    return said


def add_system_prompt(
    messages: Sequence[dict[str, Any]], system_prompt: str
) -> list[dict[str, Any]]:
    """Begin the message of the system with a prompt; make one where there is none."""
    if messages and messages[0]["role"] == "system":
        content = f"{system_prompt}\n\n{messages[0]['content']}"
        return [messages[0] | {"content": content}, *messages[1:]]
    return [{"role": "system", "content": system_prompt}, *messages]


def fold_system(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Say a first message of the system at the beginning of the user's that comes next.

    Other ones are said as the user's, and so is the first if the user does not come next: a prompt
    has to begin as the one before it did.
    """
    said = [_say_as_user(message) for message in messages]
    if len(said) > 1 and messages[0]["role"] == "system" and said[1]["role"] == "user":
        return [*join_users(said[:2]), *said[2:]]
    return said


def join_users(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Say messages of the user that follow each other as one."""
    joined: list[dict[str, Any]] = []
    for message in messages:
        if joined and message["role"] == joined[-1]["role"] == "user":
            content = f"{joined[-1]['content']}\n\n{message['content']}"
            joined[-1] = joined[-1] | {"content": content}
        else:
            joined.append(message)
    return joined


def _say_as_user(message: dict[str, Any]) -> dict[str, Any]:
    """Say a message of the system as one of the user."""
    if message["role"] != "system":
        return message
    return message | {"role": "user"}


def _say_calls(message: dict[str, Any]) -> dict[str, Any]:
    """Say the calls of a message in words."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    functions = [call["function"] for call in calls]
    written = format_hermes([(each["name"], each["arguments"]) for each in functions])
    content = "\n".join(filter(None, [message["content"], written]))
    said = {key: value for key, value in message.items() if key != "tool_calls"}
    return said | {"content": content}


def build_function_call(name: str, call_id: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Build a call of a tool, as a message of the policy has it."""
    function = {"name": name, "arguments": dict(arguments)}
    return {"id": call_id, "type": "function", "function": function}
