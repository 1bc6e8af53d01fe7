"""Actions as in Search-R1 (Jin et al. 2025): `<search> query </search>`, `<answer> text </answer>`.

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


def format_action(kind: str, text: str) -> str:
    """The action of a kind, `search` or `answer`."""
    return f"<{kind}> {' '.join(text.split())} </{kind}>"


def parse_tags(response: str) -> ParsedAction:
    """Read the first search of a response, or else its first answer; "" if there is neither.

    One after the thought comes before one in it.

    Valid: exactly one of the two, once, behind the thought and at the end: what follows the tag
    would be results of the agent's own. Nor may it write any before. Tags are matched in any case.
    """
    answer, is_thought = _split_thought(response)
    for text in (answer, response):
        for kind in KINDS:
            block = _BLOCK[kind].search(text)
            if block is not None:
                at_the_end = _AT_THE_END[kind].search(answer) is not None
                valid = at_the_end and not is_thought and _has_one_action(response)
                return ParsedAction(format_action(kind, block[1]), valid)
    return ParsedAction("", False)


def _has_one_action(response: str) -> bool:
    """True if the response opens exactly one action, and brings no results of its own."""
    opened = sum(len(_OPENING[kind].findall(response)) for kind in KINDS)
    return opened == 1 and _RESULTS.search(response) is None


def _split_thought(response: str) -> tuple[str, bool]:
    """(the text behind the last tag of a thought, whether that tag opens one).

    If it does, all of the text is still thought.
    """
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
        block = _BLOCK[kind].fullmatch(action)
        if block is not None:
            return kind, block[1].strip()
    return "", ""
