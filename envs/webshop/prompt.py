"""The message of one turn.

Short, since a small policy pays for every token; plain, so that a pretrained one understands it.

What can be clicked stands where the page has it, in the form of the action: copying it is all that
is left to do. Titles are in lower case, as instructions and queries are, so that the same words are
the same tokens.
"""

from __future__ import annotations

from envs.base import Observation
from envs.webshop.memory import ShopView
from envs.webshop.page import Page, click_action, parse_page
from envs.webshop.site import BUY

_FORMAT = "Answer with <think>your reasoning</think><action>one of the actions</action>"

# A response without an action block is executed as its last characters: keep such an action from
# breaking the layout.
_LONGEST_ACTION = 80
_LONGEST_BODY = 600


def build_prompt(view: ShopView) -> str:
    """Task, search, last pages and actions, the page now, chosen options, and possible actions."""
    memory = view.visit_memory
    lines = [f"Your task is to buy what is asked for: {view.task}"]
    if memory.query:
        lines.append(f"Searched: {_one_line(memory.query)}")
    if memory.rejected:
        lines.append("Seen: " + ", ".join(memory.rejected))
    if view.past:
        turns = [f"{summarize_page(text)} > {_one_line(action)}" for _, text, action in view.past]
        lines.append("Before: " + "; ".join(turns))
    page_lines, listed = _lay_out(memory.page, view.observation)
    lines.append(f"Step {view.step}: {page_lines[0]}")
    lines += page_lines[1:]
    if memory.chosen:
        lines.append("Chosen: " + "; ".join(memory.chosen.values()))
    others = [action for action in view.observation.admissible if action not in listed]
    lines.append("Actions: " + "; ".join(others))
    lines.append(_FORMAT)
    return "\n".join(lines)


def summarize_page(text: str) -> str:
    """A past page in a word or two; the rest of it is not needed any more."""
    admissible: tuple[str, ...] = ()
    if text.endswith(BUY):
        admissible = (click_action("buy now"),)
    page = parse_page(Observation(text, admissible))
    return {
        "index": "search page",
        "results": f"results {page.number}",
        "item": "item",
        "sub_page": "details",
    }[page.kind]


def _lay_out(page: Page, observation: Observation) -> tuple[list[str], set[str]]:
    """(lines of the page, actions that stand in them)."""
    listed: set[str] = set()
    if page.kind == "index":
        return ["the search page"], listed
    if page.kind == "results":
        lines = [f"results, page {page.number}, {page.total} found"]
        for result in page.results:
            action = click_action(result.asin.lower())
            lines.append(f"{result.title.lower()}, {result.price}: {action}")
            listed.add(action)
        return lines, listed
    if page.kind == "item":
        lines = [f"{page.title.lower()}, {page.price}"]
        for name, values in page.options.items():
            clicks = [click_action(value) for value in values]
            possible = [action for action in clicks if action in observation.admissible]
            lines.append(f"{name}: {'; '.join(possible)}")
            listed.update(possible)
        return lines, listed
    return [page.body[:_LONGEST_BODY] or "nothing is said here"], listed


def _one_line(action: str) -> str:
    return " ".join(action.split())[:_LONGEST_ACTION]
