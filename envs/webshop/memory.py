"""The knowledge of a reader of a visit: the search, the items looked at, the chosen options.

The pages do not say which options are chosen.
"""

from __future__ import annotations

from envs.base import Observation
from envs.view import AgentView
from envs.webshop.page import Page, Result, click_action, parse_page
from envs.webshop.site import parse_action


class VisitMemory:
    """The knowledge of a reader of one visit.

    `page`: the current one. `query`: that of the last search. `results`: its results by number of
    page, as far as they were seen. `asin`: the item that is looked at, or whose sub-page is.
    `chosen`: option values of this item by name. `rejected`: items that were looked at and left.
    `features`: texts of features that were read, by item, in lower case.
    """

    def __init__(self, observation: Observation) -> None:
        self.page: Page = parse_page(observation)
        self.query = ""
        self.results: dict[int, list[Result]] = {}
        self.asin = ""
        self.chosen: dict[str, str] = {}
        self.rejected: list[str] = []
        self.features: dict[str, str] = {}

    def note(self, action: str, admissible: tuple[str, ...], observation: Observation) -> None:
        """`action` was done where `admissible` was listed, and led to `observation`."""
        page_before = self.page
        self.page = parse_page(observation)
        verb, argument = parse_action(action)
        if verb == "search":
            self.query = argument
            self.results = {}
        if self.page.kind == "results":
            self.results[self.page.number] = self.page.results
        if self.page.kind in ("index", "results"):
            self._leave_item()
        elif verb == "click" and click_action(argument) in admissible:
            self._note_click(argument, page_before)

    def _leave_item(self) -> None:
        if self.asin and self.asin not in self.rejected:
            self.rejected.append(self.asin)
        self.asin = ""
        self.chosen = {}

    def _note_click(self, name: str, page_before: Page) -> None:
        """Note a click on a button that there was, and that led to an item or a sub-page."""
        if page_before.kind == "results":
            self.asin = name
        elif page_before.kind == "item" and self.page.kind == "item":
            # A value in two options is one of the last.
            for option, values in reversed(page_before.options.items()):
                if name in values:
                    self.chosen[option] = name
                    break
        elif name == "features":
            self.features[self.asin] = self.page.body.lower()


class ShopView(AgentView):
    """A view with a `VisitMemory`.

    That must know what could be clicked: a click on anything else changes nothing.
    """

    def __init__(self, task: str, observation: Observation, *, history: int) -> None:
        super().__init__(task, observation, history=history)
        self.visit_memory = VisitMemory(observation)

    def record(self, action: str, observation: Observation) -> None:
        """See `AgentView.record`."""
        self.visit_memory.note(action, self.observation.admissible, observation)
        super().record(action, observation)
