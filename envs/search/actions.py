"""Actions: `<search> query </search>` or `<answer> text </answer>`, as in Search-R1 (Jin et al.
2025).

The tag itself is the action that is executed and recorded, with single spaces: what a prompt shows
of the past is then what the agent has to write. The spaces inside make a name the same tokens here
as in the passage that it is copied from.
"""

from __future__ import annotations

import re

from envs.base import ParsedAction

KINDS = ("search", "answer")
_BLOCK = {kind: re.compile(rf"<{kind}>(.*?)</{kind}>", re.DOTALL | re.IGNORECASE) for kind in KINDS}
_AT_THE_END = {
    kind: re.compile(rf"<{kind}>.*?</{kind}>\s*\Z", re.DOTALL | re.IGNORECASE) for kind in KINDS
}
_RESULTS = re.compile(r"</?information>", re.IGNORECASE)
_THINK = re.compile(r"</?think>", re.IGNORECASE)
_OPENING = {kind: re.compile(rf"<{kind}>", re.IGNORECASE) for kind in KINDS}


def act(kind: str, text: str) -> str:
    """The action of a kind, `search` or `answer`."""
    return f"<{kind}> {' '.join(text.split())} </{kind}>"


def parse_tags(response: str) -> ParsedAction:
    """The first search, or else the first answer, after the thought if there is one there; "" if
    there is neither.

    Valid: exactly one of the two, once, behind the thought and at the end: what follows the tag
    would be results of the agent's own. Nor may it write any before. Tags are matched in any case.
    """
    opened = sum(len(_OPENING[kind].findall(response)) for kind in KINDS)
    said, thinking = _after_thought(response)
    for text in (said, response):
        for kind in KINDS:
            if block := _BLOCK[kind].search(text):
                at_the_end = _AT_THE_END[kind].search(said) is not None
                valid = (
                    opened == 1 and at_the_end and not thinking and not _RESULTS.search(response)
                )
                return ParsedAction(act(kind, block[1]), valid)
    return ParsedAction("", False)


def _after_thought(response: str) -> tuple[str, bool]:
    """(what stands behind the last tag of a thought, whether that tag opens one, so that all of it
    is still thought)."""
    tags = list(_THINK.finditer(response))
    if not tags:
        return response, False
    return response[tags[-1].end() :], not tags[-1][0].startswith("</")


def format_tags(thought: str, action: str) -> str:
    """The response that `parse_tags` reads as `action`."""
    return f"<think>{thought}</think>\n{action}"


def read_action(action: str) -> tuple[str, str]:
    """(kind, text) of an action; ("", "") for anything else."""
    for kind in KINDS:
        if found := _BLOCK[kind].fullmatch(action):
            return kind, found[1].strip()
    return "", ""
