"""How a model is talked to: what is the model's of it, and what is the user's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec

PastThoughts = Literal["keep", "template"]
ToolFormat = Literal["template", "hermes"]


class ChatFormat(msgspec.Struct, array_like=True, frozen=True):
    """How a model is talked to: its chat template, and what that is rendered with."""

    template: str
    special_tokens: dict[str, str] = {}  # by the names that templates have for them
    arguments: dict[str, Any] = {}  # of the template, by name: model.template_arguments
    system_prompt: str = ""  # empty: no message of the system
    end_tokens: list[int] = []  # that end a response; the first is written after a demonstration
    past_thoughts: PastThoughts = "keep"  # in a conversation
    tool_format: ToolFormat = "template"


class ChatOptions(NamedTuple):
    """A user's part in how prompts are rendered."""

    system_prompt: str = ""
    arguments: Mapping[str, Any] = {}
    """Arguments of the template, by name."""
    past_thoughts: PastThoughts = "keep"
    tool_format: ToolFormat = "template"
