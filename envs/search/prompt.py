"""The message of one turn: the question, past searches with their results, and the format."""

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


def format_passages(passages: Sequence[str]) -> str:
    """The observation after a search: a line for each passage."""
    if not passages:
        return NOTHING_FOUND
    lines = [
        f"Doc {number}: {' '.join(passage.split())}"
        for number, passage in enumerate(passages, start=1)
    ]
    return "\n".join(("<information>", *lines, "</information>"))


def build_prompt(view: AgentView) -> str:
    """The question, the past turns, the last results, and the format."""
    lines = [f"Question: {view.task}"]
    for turn, text, action in view.past:
        if text:
            lines.append(text)
        lines.append(f"Step {turn}: {action[:_LONGEST_ACTION]}")
    if view.observation.text:
        lines.append(view.observation.text)
    lines.append(f"Step {view.step}: {_FORMAT}")
    return "\n".join(lines)
