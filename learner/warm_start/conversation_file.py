"""Conversations of one's own, read from a file (`warm_start.data`) to be imitated.

Each line is a JSON object in OpenAI's message format: `messages`, and maybe `tools`. A conversation
becomes what the expert's episodes are, so that both have the tokens that a run's prompts have.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from config import Config, ConfigError
from envs.base import Environment
from envs.conversation import (
    ConversationTurn,
    Message,
    Role,
    ToolCall,
    find_tool_flaw,
    is_conversation,
    number_calls,
    tools_of,
)
from envs.conversation_checks import find_call_id
from envs.harness import is_harness
from envs.play import ExpertEpisode
from envs.user_errors import UserCodeError
from protocol.chat_template import THOUGHT_BEGIN, THOUGHT_END

SETTING = "warm_start.data"


class _Function(msgspec.Struct):
    """The function that is called; its arguments are JSON in a text, or the object itself."""

    name: str
    arguments: str | dict[str, Any]


class _Call(msgspec.Struct):
    """A call of a tool."""

    function: _Function
    id: str = ""
    type: Literal["function"] = "function"


class _TextPart(msgspec.Struct, tag_field="type", tag="text"):
    """A part of a message's content; images and sounds are none that can be read here."""

    text: str


class _ChatMessage(msgspec.Struct):
    """A message, as OpenAI's API and its fine-tuning have it."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_TextPart] | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None
    weight: Literal[0, 1] = 1
    """0: a message of the assistant is there to be read, and not to be imitated."""

    def text(self) -> str:
        """Return the content as one text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class _Line(msgspec.Struct):
    """A conversation; without `tools`, those of the environment are shown."""

    messages: list[_ChatMessage]
    tools: list[dict[str, Any]] | None = None


class FileConversation(NamedTuple):
    """A conversation of the file."""

    place: str
    """The setting, the file and the line, to begin an error with."""
    episode: ExpertEpisode


def read_bytes(config: Config) -> bytes:
    """Read the file; ConfigError for one that cannot be read."""
    file = config.warm_start.data
    try:
        return Path(file).read_bytes().removeprefix(codecs.BOM_UTF8)
    except FileNotFoundError:
        raise ConfigError(f"{SETTING}: there is no file {file}") from None
    except OSError as error:
        raise ConfigError(f"{SETTING}: {file} cannot be read: {error.strerror}") from None


def content_digest(config: Config) -> str:
    """Digest the file's content; ConfigError for one that cannot be read."""
    return hashlib.sha256(read_bytes(config)).hexdigest()


def count_conversations(config: Config) -> int:
    """Count the file's conversations, unread; ConfigError for one that cannot be read."""
    return sum(1 for line in read_bytes(config).split(b"\n") if line.strip())


def read_conversations(config: Config, environment: Environment) -> list[FileConversation]:
    """Read all conversations of the file, in the form that the environment's prompts have.

    Raises ConfigError that names file, line and message for the first one that does not fit.
    """
    file = config.warm_start.data
    conversations = []
    for number, line in enumerate(read_bytes(config).split(b"\n"), 1):
        if not line.strip():
            continue
        place = f"{SETTING}: {file}, line {number}"
        try:
            conversations.append(FileConversation(place, _read_line(line, environment)))
        except (ValueError, UserCodeError) as error:
            raise ConfigError(f"{place}: {error}") from None
    if not conversations:
        raise ConfigError(f"{SETTING}: {file} is empty; give one conversation a line")
    return conversations


def _read_line(line: bytes, environment: Environment) -> ExpertEpisode:
    """Read a conversation; ValueError or UserCodeError that says what is wrong with it."""
    chat = _decode(line)
    tools = tools_of(environment) if chat.tools is None else chat.tools
    flaw = find_tool_flaw(tools)
    if flaw:
        raise ValueError(flaw)
    messages = _convert_messages(chat.messages, tools)
    if not any(message.role == "assistant" for message in messages):
        raise ValueError("it has no message of the assistant to learn from")
    if not any(each.role == "assistant" and each.weight for each in chat.messages):
        raise ValueError("all of the assistant's messages have weight 0; give one weight 1")
    conversation: list[ConversationTurn] = []
    turns: list[tuple[str, str]] = []
    if is_conversation(environment) or is_harness(environment):
        weights = [each.weight for each in chat.messages]
        conversation = _split_turns(messages, weights)
    else:
        turns = [_read_exchange(messages, chat.tools, environment)]
    return ExpertEpisode(
        task="",
        task_type="",
        success=True,
        turns=turns,
        conversation=conversation,
        tools=tools,
    )


def _decode(line: bytes) -> _Line:
    """Decode a line; ValueError in words for what is no JSON, or no conversation."""
    try:
        return msgspec.json.decode(line, type=_Line)
    except msgspec.ValidationError as error:
        words, _, place = str(error).partition(" - at `$.")
        if not place:
            raise ValueError(
                f'{_lower(words)}; each line has to be {{"messages": [...]}}, in OpenAI\'s form'
            ) from None
        raise ValueError(f"{place.rstrip('`')}: {_lower(words)}{_hint(place)}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(
            f"it is no JSON, of which each line has one object: {_lower(str(error))}"
        ) from None


def _lower(words: str) -> str:
    """Begin words in lower case, unless they begin with an abbreviation."""
    return words if words[:2].isupper() else words[:1].lower() + words[1:]


def _hint(place: str) -> str:
    """Say what belongs in a place where something else was found, if that is not plain."""
    if place.endswith(".role`"):
        return "; roles are system, developer, user, assistant and tool"
    if place.endswith(".type`") and ".content[" in place:
        return "; a content's parts are texts here"
    return ""


def _convert_messages(
    chat_messages: Sequence[_ChatMessage], tools: Sequence[Mapping[str, Any]]
) -> list[Message]:
    """Convert messages to those of an environment; calls are numbered as a policy's are."""
    messages: list[Message] = []
    calls: tuple[ToolCall, ...] = ()  # of the assistant's last message, as the file has them
    ids: dict[str, str] = {}  # of these, in the file -> as numbered
    count = 0
    for number, chat_message in enumerate(chat_messages):
        name = f"messages[{number}]"
        if chat_message.tool_calls and chat_message.role != "assistant":
            raise ValueError(f"{name}: only the assistant calls tools")
        if chat_message.role == "assistant":
            answer = _convert_answer(name, chat_message, tools)
            calls = answer.tool_calls
            message = number_calls(answer, count)
            count += len(calls)
            ids = {old.id: new.id for old, new in zip(calls, message.tool_calls, strict=True)}
        elif chat_message.role == "tool":
            result = Message(
                "tool", chat_message.text(), tool_call_id=chat_message.tool_call_id or ""
            )
            called = ids[find_call_id(name, result, calls)]
            message = Message("tool", result.content, tool_call_id=called)
        else:
            message = Message(_ROLES.get(chat_message.role, "user"), chat_message.text())
        messages.append(message)
    return messages


_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user"}


def _convert_answer(
    name: str, chat_message: _ChatMessage, tools: Sequence[Mapping[str, Any]]
) -> Message:
    """Convert a message of the assistant."""
    known = [tool["function"]["name"] for tool in tools]
    calls = []
    for number, call in enumerate(chat_message.tool_calls or []):
        place = f"{name}.tool_calls[{number}]"
        if call.function.name not in known:
            raise ValueError(
                f"{place}: there is no tool {call.function.name!r:.100}, but "
                f"{', '.join(known) or 'none at all; give the line its tools'}"
            )
        arguments = _read_arguments(f"{place}.function.arguments", call.function.arguments)
        calls.append(ToolCall(call.function.name, arguments, call.id))
    if len({call.id for call in calls}) < len(calls):
        raise ValueError(f"{name}.tool_calls: each call needs an id of its own")
    reasoning = chat_message.reasoning_content or ""
    answer = Message("assistant", chat_message.text(), reasoning, tuple(calls))
    if not calls and not _split_thought(answer).content.strip():
        raise ValueError(f"{name}: the assistant says nothing, and calls no tool")
    return answer


def _split_thought(answer: Message) -> Message:
    """Make a thought that begins a message's content its reasoning, as a run reads it."""
    content = answer.content.lstrip()
    if answer.reasoning or not content.startswith(THOUGHT_BEGIN) or THOUGHT_END not in content:
        return answer
    thought, _, content = content.removeprefix(THOUGHT_BEGIN).partition(THOUGHT_END)
    return replace(answer, content=content.lstrip(), reasoning=thought.strip())


def _read_arguments(place: str, arguments: str | dict[str, Any]) -> dict[str, Any]:
    """Return a call's arguments; ValueError for a text that is no JSON object."""
    if isinstance(arguments, dict):
        return arguments
    try:
        return msgspec.json.decode(arguments, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"{place}: {arguments!r:.100} is no JSON object: {error}") from None


def _split_turns(messages: Sequence[Message], weights: Sequence[int]) -> list[ConversationTurn]:
    """Split messages into turns: what comes before a message of the assistant, and that."""
    turns: list[ConversationTurn] = []
    before: list[Message] = []
    for number, message in enumerate(messages):
        if message.role != "assistant":
            before.append(message)
            continue
        if not before:
            raise ValueError(
                f"messages[{number}]: the assistant speaks without a message of another before; "
                "join its messages, or begin with one of the user"
            )
        answer = _split_thought(message)
        turns.append(ConversationTurn(tuple(before), answer, bool(weights[number])))
        before = []
    return turns


def _read_exchange(
    messages: Sequence[Message], tools: object, environment: Environment
) -> tuple[str, str]:
    """Read (prompt, response) of an environment whose prompts are one message of the user."""
    roles = [message.role for message in messages]
    if roles != ["user", "assistant"] or messages[1].tool_calls or tools:
        raise ValueError(
            f"{environment.name} asks each turn in one message of the user, without "
            f"tools, and this has {', '.join(roles)}; write each turn as a line of user and "
            "assistant (model.system_prompt comes before it), or choose an environment that talks "
            "in messages"
        )
    prompt, answer = messages
    response = answer.content
    if answer.reasoning:
        response = f"{THOUGHT_BEGIN}{answer.reasoning}{THOUGHT_END}\n{response}"
    return prompt.content, response
