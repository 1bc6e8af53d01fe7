"""The message of one turn.

Short, since a small policy pays for every token; plain, so that a pretrained one understands it.

What can be clicked stands where the page has it, in the form of the action: copying it is all that
is left to do. Titles are in lower case, as instructions and queries are, so that the same words are
the same tokens.
"""

from __future__ import annotations

from envs.base import Observation
from envs.webshop.memory import ShopView
from envs.webshop.page import Page, click, read_page

_FORMAT = "Answer with <think>your reasoning</think><action>one of the actions</action>"

# A response without an action block is executed as its last characters: keep such an action from
# breaking the layout.
_LONGEST_ACTION = 80
_LONGEST_BODY = 600


def build_prompt(view: ShopView) -> str:
    """Task, what was searched and chosen, the last pages and actions, the page now, and what can be
    done."""
    recollection = view.recollection
    lines = [f"Your task is to buy what is asked for: {view.task}"]
    if recollection.query:
        lines.append(f"Searched: {_one_line(recollection.query)}")
    if recollection.left:
        lines.append("Seen: " + ", ".join(recollection.left))
    if view.past:
        lines.append(
            "Before: "
            + "; ".join(f"{name_page(text)} > {_one_line(action)}" for _, text, action in view.past)
        )
    shown, listed = _layout(recollection.page, view.observation)
    lines.append(f"Step {view.step}: {shown[0]}")
    lines += shown[1:]
    if recollection.chosen:
        lines.append("Chosen: " + "; ".join(recollection.chosen.values()))
    lines.append(
        "Actions: "
        + "; ".join(action for action in view.observation.admissible if action not in listed)
    )
    lines.append(_FORMAT)
    return "\n".join(lines)


def name_page(text: str) -> str:
    """A past page in a word or two: what it said is not needed any more."""
    page = read_page(Observation(text, (click("buy now"),) if text.endswith("Buy Now") else ()))
    return {
        "index": "search page",
        "results": f"results {page.number}",
        "item": "item",
        "sub_page": "details",
    }[page.kind]


def _layout(page: Page, observation: Observation) -> tuple[list[str], set[str]]:
    """(Lines of the page, actions that stand in them)."""
    if page.kind == "index":
        return ["the search page"], set()
    if page.kind == "results":
        rows = [
            (f"{title.lower()}, {price}", click(asin.lower())) for asin, title, price in page.rows
        ]
        lines = [f"{shown}: {action}" for shown, action in rows]
        return [f"results, page {page.number}, {page.total} found", *lines], {
            action for _, action in rows
        }
    if page.kind == "item":
        options = {
            name: [action for value in values if (action := click(value)) in observation.admissible]
            for name, values in page.options.items()
        }
        lines = [f"{name}: {'; '.join(actions)}" for name, actions in options.items()]
        return [f"{page.title.lower()}, {page.price}", *lines], {
            action for actions in options.values() for action in actions
        }
    return [page.body[:_LONGEST_BODY] or "nothing is said here"], set()


def _one_line(action: str) -> str:
    return " ".join(action.split())[:_LONGEST_ACTION]
