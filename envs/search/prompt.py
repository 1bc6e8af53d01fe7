"""The message of one turn: the question, what was searched and found, and what to do now."""

from __future__ import annotations

from collections.abc import Sequence

from envs.view import AgentView

_FORMAT = (
    "Answer with <think>your reasoning</think> and <search> what to look up </search> or, once "
    "you know it, <answer> a few words </answer>"
)

# An agent can search for anything; keep it from breaking the layout.
_LONGEST_ACTION = 120

NOTHING_FOUND = "<information>\nNothing was found.\n</information>"
NO_ACTION = "That was neither a search nor an answer."


def show_passages(passages: Sequence[str]) -> str:
    """The observation after a search: a line for each passage."""
    if not passages:
        return NOTHING_FOUND
    lines = [
        f"Doc {number}: {' '.join(passage.split())}"
        for number, passage in enumerate(passages, start=1)
    ]
    return "\n".join(("<information>", *lines, "</information>"))


def build_prompt(view: AgentView) -> str:
    """Question, past turns, what was found last, and the format."""
    lines = [f"Question: {view.task}"]
    for turn, text, action in view.past:
        lines += [text] if text else []
        lines.append(f"Step {turn}: {action[:_LONGEST_ACTION]}")
    lines += [view.observation.text] if view.observation.text else []
    lines.append(f"Step {view.step}: {_FORMAT}")
    return "\n".join(lines)
