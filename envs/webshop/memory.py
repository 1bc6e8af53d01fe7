"""What a reader of a visit knows: the search, what was looked at, what is chosen.

The pages do not say which options are chosen.
"""

from __future__ import annotations

from envs.base import Observation
from envs.view import AgentView
from envs.webshop.page import Page, click, read_page
from envs.webshop.site import parse_action


class Recollection:
    """`page`: the current one.

    `query`: of the last search; `rows`: its results by number of page, as far as they were seen.

    `asin`: of the item that is looked at, or whose sub-page is; `chosen`: option values by name, of
    this item. `left`: items that were looked at and left. `features`: what was read of the features
    of an item, in lower case.
    """

    def __init__(self, observation: Observation) -> None:
        self.page: Page = read_page(observation)
        self.query = ""
        self.rows: dict[int, list[tuple[str, str, str]]] = {}
        self.asin = ""
        self.chosen: dict[str, str] = {}
        self.left: list[str] = []
        self.features: dict[str, str] = {}

    def note(self, action: str, admissible: tuple[str, ...], observation: Observation) -> None:
        """`action` was done where `admissible` was listed, and led to `observation`."""
        before = self.page
        self.page = read_page(observation)
        verb, argument = parse_action(action)
        clicked = argument if verb == "click" and click(argument) in admissible else ""
        if verb == "search":
            self.query = argument
            self.rows = {}
        if self.page.kind == "results":
            self.rows[self.page.number] = self.page.rows
        if self.page.kind in ("index", "results"):
            if self.asin and self.asin not in self.left:
                self.left.append(self.asin)
            self.asin = ""
            self.chosen = {}
        elif not clicked:
            return
        elif before.kind == "results":
            self.asin = clicked
        elif before.kind == "item" and self.page.kind == "item":
            name = next(
                (name for name in reversed(before.options) if clicked in before.options[name]), ""
            )
            if name:
                self.chosen[name] = clicked
        elif clicked == "features":
            self.features[self.asin] = self.page.body.lower()


class ShopView(AgentView):
    """A view with a `Recollection`, which must know what could be clicked: a click on anything else
    changes nothing."""

    def __init__(self, task: str, observation: Observation, *, history: int) -> None:
        super().__init__(task, observation, history=history)
        self.recollection = Recollection(observation)

    def record(self, action: str, observation: Observation) -> None:
        """See `AgentView.record`."""
        self.recollection.note(action, self.observation.admissible, observation)
        super().record(action, observation)
