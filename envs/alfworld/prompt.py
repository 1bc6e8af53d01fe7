"""The message of one turn.

Short, since a small policy pays for every token; plain, so that a pretrained one understands it.
"""

from __future__ import annotations

from typing import Literal

from envs.alfworld.memory import Transcript
from envs.view import AgentView

MemoryMode = Literal["none", "contents"]

_FORMAT = "Answer with <think>your reasoning</think><action>one of the actions</action>"

_ROOM = "You are in the middle of a room."

# A response without an action block is executed as its last characters: keep such an action from
# breaking the layout.
_LONGEST_ACTION = 60


def build_prompt(view: AgentView, memory: MemoryMode) -> str:
    """Task, what is remembered, the last observations and actions, what is seen now, and what can
    be done."""
    lines = [f"Your task is to: {view.task}"]
    if memory != "none" and isinstance(view.memory, Transcript):
        lines += _remembered(view.memory)
    if view.past:
        lines.append(
            "Before: "
            + "\n".join(
                f"{_shortened(text, memory)} > {_one_line(action)}" for _, text, action in view.past
            )
        )
    lines.append(f"Step {view.step}: {view.observation.text}")
    # `help` teaches nothing that this message does not say.
    lines.append(
        "Actions: "
        + "; ".join(action for action in view.observation.admissible if action != "help")
    )
    lines.append(_FORMAT)
    return "\n".join(lines)


def _remembered(transcript: Transcript) -> list[str]:
    """Where things were seen, and where to look: a place that was empty is in neither."""
    lines = []
    if seen := [
        f"{place}: {', '.join(things)}" for place, things in transcript.contents.items() if things
    ]:
        lines.append("Seen: " + "; ".join(seen))
    if unsearched := transcript.unsearched:
        lines.append("Unsearched: " + "; ".join(unsearched))
    if transcript.carrying:
        states = transcript.treated.get(transcript.carrying)
        lines.append(
            f"Carrying: {transcript.carrying}" + (f" ({', '.join(states)})" if states else "")
        )
    return lines


def _shortened(text: str, memory: MemoryMode) -> str:
    """A past observation, without what the prompt says elsewhere: the room's places (the actions
    list them) and, where contents are remembered, what was seen at a place."""
    if text.startswith(_ROOM) or (
        memory == "contents" and text.startswith(("You arrive", "You open"))
    ):
        return text.partition(".")[0] + "."
    return " ".join(text.split())


def _one_line(action: str) -> str:
    return " ".join(action.split())[:_LONGEST_ACTION]
