"""Tool calls in a policy's text: the forms that chat templates have for them.

Each form reads the text of a response, without its thought, and gives the words before the first
call, and the calls. The forms are those that vLLM's parsers of the same names read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from math import isinf
from typing import Any, NamedTuple, NoReturn

CALL_START = "<tool_call>"
CALL_END = "</tool_call>"
RESULT_START = "<tool_response>"
RESULT_END = "</tool_response>"

MAX_DEPTH = 50
"""How often lists and objects of a call's arguments may be inside each other."""

_HERMES_CALL = re.compile(f"{CALL_START}(.*?)(?:{CALL_END}|$)", re.DOTALL)
_PYTHON_TAG = "<|python_tag|>"
_MISTRAL_START = "[TOOL_CALLS]"
_MISTRAL_NAMED = re.compile(r"\s*([^\s\[\]{}]+?)\s*(?:\[CALL_ID\].*?)?\[ARGS\](.*)", re.DOTALL)


class ParsedCall(NamedTuple):
    """A tool call, as far as it can be read."""

    name: str
    """Name of the tool; "" where none can be read."""
    arguments: dict[str, Any]
    error: str = ""
    """Why it cannot be called, in words that the policy can be told; "" if it can."""
    text: str = ""
    """The call as the policy wrote it."""
    id: str = ""
    """Id that its result refers to, once it has one."""


ParseCalls = Callable[[str], tuple[str, list[ParsedCall]]]
"""Takes the text of a response without its thought; returns (words before the calls, calls)."""


def parse_hermes(text: str) -> tuple[str, list[ParsedCall]]:
    """Read `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number of times."""
    content, _, _ = text.partition(CALL_START)
    return content, [_read_json_call(call.strip()) for call in _HERMES_CALL.findall(text)]


def parse_llama3(text: str) -> tuple[str, list[ParsedCall]]:
    """Read `{"name": ..., "parameters": {...}}`, several of them with anything between them.

    A text that neither begins with a call nor has a readable one is an answer in words.
    """
    content, tag, body = text.rpartition(_PYTHON_TAG)
    means_call = bool(tag) or body.lstrip().startswith("{")
    calls = []
    position = body.find("{")
    while position >= 0:
        value, end = _decode_json(body, position)
        call = _as_call(value, body[position:end])
        if call.error and not means_call:
            return text, []
        calls.append(call)
        position = body.find("{", end)
    if means_call and not calls:
        calls = [ParsedCall("", {}, "it is no JSON", body)]
    if not calls:
        return text, []
    return content + body[: body.find("{")], calls


def parse_mistral(text: str) -> tuple[str, list[ParsedCall]]:
    """Read `[TOOL_CALLS]` with a JSON list of calls, or with NAME[ARGS]{...} for each call."""
    content, *parts = text.split(_MISTRAL_START)
    calls = []
    for part in parts:
        named = _MISTRAL_NAMED.fullmatch(part)
        if named is not None:
            value = {"name": named[1], "arguments": _decode_json(named[2].strip(), 0)[0]}
            calls.append(_as_call(value, part))
            continue
        values, _ = _decode_json(part.strip(), 0)
        if not isinstance(values, list):
            values = [values]
        calls += [_as_call(value, part) for value in values]
    return content, calls


PARSERS: Mapping[str, ParseCalls] = {
    "hermes": parse_hermes,
    "mistral": parse_mistral,
    "llama3": parse_llama3,
}
"""Parsers by the name of their form, the least mistakable first."""


def format_hermes(calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Write (name, arguments) of each call as `parse_hermes` reads it."""
    return "\n".join(
        f"{CALL_START}\n{to_json({'name': name, 'arguments': arguments})}\n{CALL_END}"
        for name, arguments in calls
    )


def describe_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    """Describe tools to a policy whose chat template knows none, and how they are called."""
    schemas = "\n".join(to_json(tool["function"]) for tool in tools)
    return (
        f"Tools:\n{schemas}\n"
        f'Call one by {CALL_START}{{"name": "...", "arguments": {{...}}}}{CALL_END}; its result '
        f"comes in {RESULT_START}."
    )


def to_json(value: object) -> str:
    """Write JSON as chat templates do: on one line, letters of all scripts as they are."""
    return json.dumps(value, ensure_ascii=False)


class _Unreadable(NamedTuple):
    """Stands for JSON that cannot be read."""

    reason: str


def _read_json_call(text: str) -> ParsedCall:
    value, end = _decode_json(text, 0)
    if not isinstance(value, _Unreadable) and text[end:].strip():
        value = _Unreadable("there is more after its JSON")
    return _as_call(value, text)


def _decode_json(text: str, position: int) -> tuple[Any, int]:
    """Decode the JSON value that begins at a position: (value or _Unreadable, where it ends)."""
    try:
        value, end = _DECODER.raw_decode(text, position)
        to_json(value).encode()
    except UnicodeEncodeError:
        return _Unreadable("it has half a character"), len(text)
    except (ValueError, RecursionError) as error:
        return _Unreadable(f"it is no JSON: {error}"), len(text)
    return value, end


def _as_call(value: object, text: str) -> ParsedCall:
    """Return the call that a value of JSON is, with an error if it is none."""
    if isinstance(value, _Unreadable):
        return ParsedCall("", {}, value.reason, text)
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return ParsedCall("", {}, "it has no name", text)
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, _Unreadable):
        return ParsedCall(value["name"], {}, arguments.reason, text)
    if not isinstance(arguments, dict):
        return ParsedCall(value["name"], {}, "its arguments are no object", text)
    if _is_deeper(arguments, MAX_DEPTH):
        return ParsedCall(value["name"], {}, "its arguments are nested too deeply", text)
    return ParsedCall(value["name"], arguments, "", text)


def _is_deeper(value: object, depth: int) -> bool:
    """Tell whether lists and objects are inside each other more than `depth` times."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return False
    return depth == 0 or any(_is_deeper(item, depth - 1) for item in value)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _read_float(text: str) -> float:
    number = float(text)
    if isinf(number):
        raise ValueError(f"{text} is too large a number")
    return number


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_read_float)
