"""Responses of the form `<think>…</think><action>…</action>`: how one is read and written."""

from __future__ import annotations

import re
from collections.abc import Collection

from envs.base import ParsedAction

_FORM = re.compile(r"\s*<think>.*</think>\s*<action>(.*)</action>\s*", re.DOTALL | re.IGNORECASE)
_FIRST_ACTION = re.compile(r"<action>(.*?)</action>", re.DOTALL | re.IGNORECASE)
_TAGS = ("<think>", "</think>", "<action>", "</action>")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")

TAIL = 30
"""Characters at the end of a response that stand in for its action when it has no action block."""


def parse_think_action(
    response: str, admissible: Collection[str] | None = None, *, keep_case: bool = False
) -> ParsedAction:
    """Read the action of a response, stripped and (unless `keep_case`) lower-cased.

    Valid: each tag exactly once, in the order above, only white space around them, no Chinese
    characters, and the action in `admissible` (None: anything goes). If not, the first action block
    is still executed, or else the last `TAIL` characters. Tags and actions are matched in any case.
    """
    text = response
    if not keep_case:
        text = response.lower()
    form = _FORM.fullmatch(text)
    if form is not None and all(response.lower().count(tag) == 1 for tag in _TAGS):
        action = form.group(1).strip()
        valid = _is_admissible(action, admissible) and _CHINESE.search(response) is None
        return ParsedAction(action, valid)
    block = _FIRST_ACTION.search(text)
    if block is None:
        return ParsedAction(text[-TAIL:].strip(), False)
    return ParsedAction(block.group(1).strip(), False)


def _is_admissible(action: str, admissible: Collection[str] | None) -> bool:
    if admissible is None or action in admissible:
        return True
    return action in {possible.strip().lower() for possible in admissible}


def format_think_action(thought: str, action: str) -> str:
    """The response that `parse_think_action` reads as `action`."""
    return f"<think>{thought}</think>\n<action>{action}</action>"
