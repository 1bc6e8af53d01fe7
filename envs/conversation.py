"""The protocol of an environment that talks in messages: its own, the policy's, and of tools.

A `ConversationEnvironment` is a set of numbered tasks, as an `Environment` (envs/base.py) is.
`start` opens one of them as a `Conversation`. What the policy says is handed to `reply`, which
answers with the messages that come next. Messages only ever follow: the policy reads all that was
said so far, its own words exactly as it said them.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

from envs.base import EnvironmentFailure, Split
from envs.user_errors import to_printable

Role = Literal["system", "user", "assistant", "tool"]

ROLES = ("system", "user", "assistant", "tool")

_TOOL_NAME = re.compile(r"[\w./-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by the policy."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Values that JSON has, by name; not checked against the tool's schema."""
    id: str = ""
    """What the tool's answer gives as its `tool_call_id`."""
    error: str = ""
    """Why the call cannot be read, for the policy to be told; "" for a sound call."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str = ""
    reasoning: str = ""
    """The policy's thought, which comes before `content`."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls of the policy; its answer in words has none."""
    tool_call_id: str = ""
    """Call that a tool's message answers; it may be left out where there was one call."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What follows a message of the policy.

    `messages` are of the roles user, tool or system, and at least one unless `done`. `valid` says
    that the policy's message had the form that the task demands; one that could not be read is
    invalid in any case.
    """

    messages: Sequence[Message] = ()
    reward: float = 0.0
    done: bool = False
    success: bool = False
    truncated: bool = False
    valid: bool = True


class ConversationTurn(NamedTuple):
    """One turn of a demonstration."""

    messages: tuple[Message, ...]
    """What was said since the policy's last message."""
    answer: Message
    """What the expert says in the policy's place."""
    taught: bool
    """It is to be imitated, and no mistake that was made on purpose."""


class Conversation(Protocol):
    """One task being played, from `start` to the first `Reply.done`.

    Used once, in one thread. It may have two methods more: `state_key()`, as an `Episode` has,
    where the default (all that the policy was told so far) is not what GiGPO should compare; and
    `close()`, where it holds something open.
    """

    task: str
    """The instruction, for the record."""
    task_type: str
    """The family of the task, for metrics; the policy does not see it."""
    messages: Sequence[Message]
    """The messages that it begins with; the last one is not the policy's."""
    scores: Mapping[str, float]
    """Figures that the benchmark reports beside success, by name."""

    def reply(self, message: Message) -> Reply:
        """Answer a message of the policy, calls of tools included.

        EnvironmentFailure (envs/base.py) if the environment breaks.
        """
        ...


class ConversationExpert(Protocol):
    """Demonstrates one conversation, from the messages that the policy reads."""

    def act(self, messages: Sequence[Message]) -> Message:
        """The message of the policy that brings the task forward."""
        ...

    def waste_turn(self, messages: Sequence[Message]) -> Message:
        """A message of the policy that does no harm and no good."""
        ...


class ConversationEnvironment(Protocol):
    """A set of numbered tasks, stateless but for its settings.

    It may have a method `expert(episode, rng)`, as an `Environment` has: it returns a
    `ConversationExpert`, or raises ValueError where nobody can demonstrate the task.
    """

    name: str
    max_turns: int
    """Messages of the policy after which an episode is cut off, as truncated."""
    tools: Sequence[Mapping[str, Any]]
    """Tools that the policy may call: JSON schemas in OpenAI's form; empty for none."""

    def size(self, split: Split) -> int:
        """Number of tasks in a split."""
        ...

    def start(self, split: Split, index: int, seed: int) -> Conversation:
        """Open task `index`, as `Environment.start` does."""
        ...


def is_conversation(environment: object) -> bool:
    """Tell whether an environment, or the class of one, talks in messages."""
    talks = hasattr(environment, "tools") and hasattr(environment, "start")
    return talks and not hasattr(environment, "prompt")


def find_flaw(environment: object) -> str:
    """Say what is wrong with the parts of an environment that talks in messages; "" if nothing."""
    max_turns = getattr(environment, "max_turns", None)
    if not isinstance(max_turns, int) or max_turns < 1:
        return f"max_turns: a whole number of at least 1 belongs there, not {max_turns!r:.100}"
    return find_tool_flaw(tools_of(environment))


def tools_of(environment: object) -> Sequence[Mapping[str, Any]]:
    """Return the tools of an environment that talks in messages; none of another one."""
    return getattr(environment, "tools", ())


def answer_calls(message: Message, functions: Mapping[str, Callable[..., object]]) -> list[Message]:
    """Call the functions that a message names; returns one message of a tool for each call.

    What cannot be read, is no function, has other arguments, or raises is answered with what is
    wrong, since it is the policy that chose the arguments. An EnvironmentFailure ends the episode.
    """
    return [
        Message("tool", _answer_call(call, functions), tool_call_id=call.id)
        for call in message.tool_calls
    ]


def _answer_call(call: ToolCall, functions: Mapping[str, Callable[..., object]]) -> str:
    if call.error:
        return f"error: the call cannot be read: {call.error}"
    function = functions.get(call.name)
    if function is None:
        return f"error: there is no tool {call.name}, but {', '.join(functions)}"
    try:
        inspect.signature(function).bind(**call.arguments)
    except TypeError as error:
        return f"error: {call.name}: {error}"
    except ValueError:  # written in C, which says nothing of its arguments
        pass
    try:
        text = str(function(**call.arguments))
        text.encode()
    except EnvironmentFailure:
        raise
    except Exception as error:
        return f"error: {type(error).__name__}: {to_printable(str(error))}"
    return text


def find_tool_flaw(tools: object) -> str:
    """Say what is wrong with an environment's tools; "" if nothing is."""
    if isinstance(tools, Mapping):
        return "tools: one schema is no list; write a tuple or a list, with its comma: (TOOL,)"
    if not isinstance(tools, list | tuple):
        return f"tools: a list of JSON schemas belongs there, not {tools!r:.100}"
    names = set()
    for number, tool in enumerate(tools):
        flaw = _find_schema_flaw(tool)
        if flaw:
            return f"tools[{number}]: {flaw}"
        name = tool["function"]["name"]
        if name in names:
            return f"tools[{number}]: there are two tools {name!r}"
        names.add(name)
    return ""


def _find_schema_flaw(tool: object) -> str:
    """Say what keeps a value from being a tool in OpenAI's form; "" if nothing does."""
    form = '{"type": "function", "function": {"name": ..., "description": ..., "parameters": ...}}'
    if not isinstance(tool, Mapping) or not isinstance(tool.get("function"), Mapping):
        return f"it has to be {form}, and is {tool!r:.100}"
    function = tool["function"]
    if tool.get("type") != "function":
        return f'its type has to be "function", in {form}'
    name = function.get("name")
    if not isinstance(name, str) or not name:
        return f"it has no name, in {form}"
    if not _TOOL_NAME.fullmatch(name):
        return f"its name {name!r:.100} is not of 1 to 64 letters, digits, '_', '-', '.' or '/'"
    if not isinstance(function.get("description", ""), str):
        return "its description is no text"
    return _find_parameters_flaw(function) or find_json_flaw(tool)


def _find_parameters_flaw(function: Mapping[str, Any]) -> str:
    parameters = function.get("parameters", {"type": "object", "properties": {}})
    if not isinstance(parameters, Mapping) or parameters.get("type") != "object":
        return 'its parameters are no JSON schema of type "object"'
    properties = parameters.get("properties", {})
    if not isinstance(properties, Mapping) or not all(
        isinstance(name, str) and isinstance(schema, Mapping | bool)
        for name, schema in properties.items()
    ):
        return "the properties of its parameters do not map names to schemas"
    required = parameters.get("required", [])
    if not isinstance(required, list | tuple) or not all(
        isinstance(name, str) for name in required
    ):
        return "what its parameters have as required is no list of names"
    return ""


def find_json_flaw(value: object) -> str:
    """Say why a value cannot be said in JSON; "" if it can."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        return f"it is no JSON: {error}"
    return ""


def to_chat_messages(
    messages: Sequence[Message], before: Sequence[Message] = ()
) -> list[dict[str, Any]]:
    """Make messages in OpenAI's form, as chat templates take them.

    `before` are those before them, whose calls they may answer.
    """
    names = {call.id: call.name for said in (*before, *messages) for call in said.tool_calls}
    return [_to_chat_message(message, names) for message in messages]


def _to_chat_message(message: Message, names: Mapping[str, str]) -> dict[str, Any]:
    """Make one message; `names` has the tool of each call by its id."""
    chat_message: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        chat_message["reasoning_content"] = message.reasoning
    if message.tool_calls:
        chat_message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.role == "tool":
        chat_message["tool_call_id"] = message.tool_call_id
        chat_message["name"] = names.get(message.tool_call_id, "")
    return chat_message


def call_id(number: int) -> str:
    """Return the id of an episode's call number `number`: nine letters, as some templates ask."""
    return f"call{number:05}"


def number_calls(message: Message, first: int) -> Message:
    """Give the calls of a message their ids, as those of a policy have; `first`: calls before."""
    calls = [replace(call, id=call_id(i)) for i, call in enumerate(message.tool_calls, first)]
    return replace(message, tool_calls=tuple(calls))


def describe_message(message: Message) -> str:
    """Say what a message of the policy does, without its thought: its words, and its calls."""
    lines = [message.content] if message.content else []
    for call in message.tool_calls:
        values = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
        line = f"{call.name}({values})"
        if call.error:
            line = f"a call that cannot be read: {call.error}"
        lines.append(line)
    return "\n".join(lines)
