"""Checks of what an environment says, and its expert in the policy's place."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from envs.conversation import ROLES, Message, Reply, ToolCall, find_json_flaw, number_calls
from envs.user_errors import UserCodeError, describe_value, require_text

PARTS = ("task", "task_type", "scores", "messages", "reply")
"""What the episode of an environment that talks in messages has."""


def check_parts(conversation: object) -> None:
    """Raise UserCodeError for what `start` gave, if it lacks a part of a conversation."""
    missing = [name for name in PARTS if not hasattr(conversation, name)]
    if not missing:
        return
    near = difflib.get_close_matches(missing[0], dir(conversation), n=1)
    hint = f"; is {near[0]} meant to be {missing[0]}?" if near else ""
    raise UserCodeError(
        f"start() gave a {type(conversation).__name__}, which has no {' and no '.join(missing)}"
        f"{hint}"
    )


def require_reply(reply: object) -> Reply:
    """Return what reply() gave; UserCodeError for what is no Reply."""
    if isinstance(reply, Reply):
        return reply
    raise UserCodeError(
        f"the environment gave {describe_value(reply)} as reply(); return a Reply: "
        "Reply([Message(...)]), or Reply(done=True) (envs.conversation)"
    )


def check_opening(messages: object) -> list[Message]:
    """Return the messages that a conversation begins with; UserCodeError for other things.

    Calls of tools among them are numbered, as those of the policy will be.
    """
    checked: list[Message] = []
    calls: tuple[ToolCall, ...] = ()
    ids: dict[str, str] = {}
    count = 0
    for name, message in _list_messages("messages", messages):
        if message.role == "assistant":
            calls = message.tool_calls
            message = number_calls(message, count)
            count += len(calls)
            ids = {old.id: new.id for old, new in zip(calls, message.tool_calls, strict=True)}
        elif message.role == "tool":
            called = find_call_id(name, message, calls)
            message = replace(message, tool_call_id=ids[called])
        checked.append(message)
    if checked[-1].role == "assistant":
        raise UserCodeError(
            "the last of messages is the assistant's, and what it says next is the policy's own; "
            "end with a message of user or tool"
        )
    return checked


def check_reply(messages: object, answered: Message) -> list[Message]:
    """Return the messages that follow one of the policy; UserCodeError for other things.

    A result of a tool gets the id of the call that it answers, where there is one call.
    """
    checked = []
    for name, message in _list_messages("reply().messages", messages):
        if message.role == "assistant":
            raise UserCodeError(
                f"{name} is the assistant's: what was said before cannot be said otherwise, and "
                "what it says next is the policy's own"
            )
        if message.role == "tool":
            called = find_call_id(name, message, answered.tool_calls)
            checked.append(replace(message, tool_call_id=called))
        else:
            checked.append(message)
    return checked


def check_answer(message: object) -> Message:
    """Return what an expert says in the policy's place; UserCodeError for other things."""
    name = "the expert's message"
    checked = _check_message(name, message)
    if checked.role != "assistant":
        raise UserCodeError(f"{name} has the role {checked.role}, and not assistant")
    return checked


def _list_messages(name: str, messages: object) -> list[tuple[str, Message]]:
    """(name, message) of each message; UserCodeError for what is no list of them."""
    if not isinstance(messages, list | tuple):
        raise UserCodeError(
            f"the environment gave {describe_value(messages)} as {name}, where a list of messages "
            "belongs"
        )
    if not messages:
        raise UserCodeError(
            f"the environment gave no messages as {name}: the policy has nothing to answer; give "
            "one, or say done=True"
        )
    places = [f"{name}[{number}]" for number in range(len(messages))]
    return [
        (place, _check_message(place, message))
        for place, message in zip(places, messages, strict=True)
    ]


def _check_message(name: str, message: object) -> Message:
    if not isinstance(message, Message):
        raise UserCodeError(
            f"the environment gave {describe_value(message)} as {name}, where a Message belongs "
            "(envs.conversation)"
        )
    if message.role not in ROLES:
        raise UserCodeError(
            f"the environment gave {describe_value(message.role)} as {name}.role, which is one of "
            f"{', '.join(ROLES)}"
        )
    require_text(f"{name}.content", message.content, None)
    require_text(f"{name}.reasoning", message.reasoning, None)
    require_text(f"{name}.tool_call_id", message.tool_call_id)
    if not isinstance(message.tool_calls, list | tuple):
        raise UserCodeError(
            f"the environment gave {describe_value(message.tool_calls)} as {name}.tool_calls, "
            "where a tuple of ToolCall belongs"
        )
    if message.tool_calls and message.role != "assistant":
        raise UserCodeError(f"{name} is of the role {message.role}, and only the assistant calls")
    if message.reasoning and message.role != "assistant":
        raise UserCodeError(
            f"{name} is of the role {message.role}, and only the assistant has a reasoning"
        )
    for number, call in enumerate(message.tool_calls):
        _check_call(f"{name}.tool_calls[{number}]", call)
    return message


def _check_call(name: str, call: Any) -> None:
    if not isinstance(call, ToolCall):
        raise UserCodeError(
            f"the environment gave {describe_value(call)} as {name}, where a ToolCall belongs "
            "(envs.conversation)"
        )
    require_text(f"{name}.name", call.name)
    require_text(f"{name}.id", call.id)
    flaw = find_json_flaw(call.arguments)
    if not isinstance(call.arguments, Mapping) or flaw:
        raise UserCodeError(
            f"the environment gave {describe_value(call.arguments)} as {name}.arguments, which "
            f"map names to values of JSON{flaw and f': {flaw}'}"
        )


def find_call_id(name: str, result: Message, calls: tuple[ToolCall, ...]) -> str:
    """Find the id of the call that a message of a tool answers; UserCodeError for none."""
    ids = [call.id for call in calls]
    if not result.tool_call_id and len(ids) == 1:
        return ids[0]
    if not result.tool_call_id or result.tool_call_id not in ids:
        raise UserCodeError(
            f"{name}.tool_call_id is {describe_value(result.tool_call_id)}, and the policy's calls "
            f"have {', '.join(ids) or 'none: it called no tool'}"
        )
    return result.tool_call_id
