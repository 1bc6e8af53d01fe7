"""The message of one turn.

Short, since a small policy pays for every token; plain, so that a pretrained one understands it.
"""

from __future__ import annotations

from typing import Literal

from envs.alfworld.memory import TranscriptMemory
from envs.view import AgentView

MemoryMode = Literal["none", "contents"]

_FORMAT = "Answer with <think>your reasoning</think><action>one of the actions</action>"

_ROOM = "You are in the middle of a room."

# A response without an action block is executed as its last characters: keep such an action from
# breaking the layout.
_LONGEST_ACTION = 60


def build_prompt(view: AgentView, memory: MemoryMode) -> str:
    """Task, memory, last observations and actions, the observation now, and possible actions."""
    lines = [f"Your task is to: {view.task}"]
    if memory != "none" and isinstance(view.memory, TranscriptMemory):
        lines += _memory_lines(view.memory)
    if view.past:
        turns = [f"{_shorten(text, memory)} > {_one_line(action)}" for _, text, action in view.past]
        lines.append("Before: " + "\n".join(turns))
    lines.append(f"Step {view.step}: {view.observation.text}")
    # `help` teaches nothing that this message does not say.
    actions = [action for action in view.observation.admissible if action != "help"]
    lines.append("Actions: " + "; ".join(actions))
    lines.append(_FORMAT)
    return "\n".join(lines)


def _memory_lines(memory: TranscriptMemory) -> list[str]:
    """The places of things that were seen, and the places to look: an empty one is in neither."""
    lines = []
    seen = [f"{place}: {', '.join(things)}" for place, things in memory.contents.items() if things]
    if seen:
        lines.append("Seen: " + "; ".join(seen))
    if memory.unsearched:
        lines.append("Unsearched: " + "; ".join(memory.unsearched))
    if memory.carrying:
        line = f"Carrying: {memory.carrying}"
        states = memory.treated.get(memory.carrying)
        if states:
            line += f" ({', '.join(states)})"
        lines.append(line)
    return lines


def _shorten(text: str, memory: MemoryMode) -> str:
    """A past observation, without parts that the prompt says elsewhere.

    These are the room's places (the actions list them) and, where contents are remembered, the
    things that were seen at a place.
    """
    is_redundant = text.startswith(_ROOM)
    if memory == "contents":
        is_redundant = is_redundant or text.startswith(("You arrive", "You open"))
    if is_redundant:
        return text.partition(".")[0] + "."
    return " ".join(text.split())


def _one_line(action: str) -> str:
    return " ".join(action.split())[:_LONGEST_ACTION]
