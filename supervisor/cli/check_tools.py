"""Calls of an environment's tools with arguments of their schemas, for `check`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from actors.conversation_stage import ConversationStage
from envs.base import Environment, Split
from envs.conversation import Message, ToolCall, describe_message, tools_of
from protocol.arrays import INT32, pack
from protocol.chat_codec import ChatCodec

_MISTAKE = re.compile(
    r"error: (AttributeError|NameError|UnboundLocalError|ImportError|ModuleNotFoundError): "
)
"""Answer of a tool whose code is wrong, whatever its arguments (envs.conversation.answer_calls)."""

_SAMPLES: dict[str, Any] = {
    "string": "text",
    "integer": 1,
    "number": 1,
    "boolean": True,
    "array": [],
    "object": {},
    "null": None,
}


def find_tool_mistakes(
    environment: Environment, codec: ChatCodec, split: Split, index: int, max_prompt_tokens: int
) -> Iterator[str]:
    """Call each tool, first thing in a task; yields the answers that tell of a wrong tool."""
    for tool in tools_of(environment):
        function = tool["function"]
        call = ToolCall(function["name"], sample_arguments(function.get("parameters", {})))
        said = Message("assistant", tool_calls=(call,))
        stage = ConversationStage(environment, codec, max_prompt_tokens)
        try:
            stage.start(split, index, 0)
            count = len(stage.messages)
            stage.step(pack(np.array(stage.encode_answer(said)), INT32))
        finally:
            stage.close()
        for answer in stage.messages[count:]:
            if answer.role != "assistant" and _MISTAKE.match(answer.content):
                yield (
                    f"the tool {describe_message(said)} answers {answer.content!r}; the policy is "
                    "told so, and no episode is dropped"
                )


def sample_arguments(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Make arguments that a tool's JSON schema allows, where it says only the usual things."""
    properties = parameters.get("properties", {})
    return {name: _sample_value(schema) for name, schema in properties.items()}


def _sample_value(schema: Mapping[str, Any] | bool) -> Any:
    if isinstance(schema, bool):
        return _SAMPLES["string"]
    for key in ("default", "const"):
        if key in schema:
            return schema[key]
    for key in ("enum", "examples"):
        if schema.get(key):
            return schema[key][0]
    kind = schema.get("type", "string")
    if isinstance(kind, list | tuple):
        kind = next(iter(kind), "string")
    if kind == "object":
        return sample_arguments(schema)
    if kind == "array" and schema.get("minItems"):
        return schema["minItems"] * [_sample_value(schema.get("items", {}))]
    sample = _SAMPLES.get(str(kind), "text")
    return schema.get("minimum", sample)
