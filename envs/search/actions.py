"""Actions: `<search> query </search>` or `<answer> text </answer>`, as in Search-R1 (Jin et al. 2025).

The tag itself is the action that is executed and recorded, with single spaces: what a prompt shows of the past is then what the
agent has to write. The spaces inside make a name the same tokens here as in the passage that it is copied from.
"""

from __future__ import annotations

import re

from envs.base import ParsedAction

KINDS = ("search", "answer")
_BLOCK = {kind: re.compile(rf"<{kind}>(.*?)</{kind}>", re.DOTALL | re.IGNORECASE) for kind in KINDS}
_OPENING = {kind: re.compile(rf"<{kind}>", re.IGNORECASE) for kind in KINDS}


def act(kind: str, text: str) -> str:
    """The action of a kind, `search` or `answer`."""
    return f"<{kind}> {' '.join(text.split())} </{kind}>"


def parse_tags(response: str) -> ParsedAction:
    """The first search, or else the first answer; "" if there is neither.

    Valid: exactly one of the two, once. Tags are matched in any case, and whatever stands around them is ignored.
    """
    opened = [len(_OPENING[kind].findall(response)) for kind in KINDS]
    for kind in KINDS:
        if block := _BLOCK[kind].search(response):
            return ParsedAction(act(kind, block[1]), sum(opened) == 1)
    return ParsedAction("", False)


def format_tags(thought: str, action: str) -> str:
    """The response that `parse_tags` reads as `action`."""
    return f"<think>{thought}</think>\n{action}"


def read_action(action: str) -> tuple[str, str]:
    """(kind, text) of an action; ("", "") for anything else."""
    for kind in KINDS:
        if found := _BLOCK[kind].fullmatch(action):
            return kind, found[1].strip()
    return "", ""
