"""A demonstrator that knows what the prompt shows: it searches by the words of the instruction,
opens the result whose title has most of them at an affordable price, reads the features where the
title leaves a doubt, chooses the options asked for, and buys.

It also finishes visits that somebody else began, so it can be asked at any turn. It understands the
wordings of the generated catalogue; in other instructions it takes every word that is not in a
short list for one that counts.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from envs.view import AgentView
from envs.webshop.memory import Recollection, ShopView
from envs.webshop.page import Page, click
from envs.webshop.thoughts import word

_CAP = re.compile(r", and price lower than ([\d.]+) dollars$")
_NAMED = re.compile(r"(?:^|, and )[\w ]+: ([^:]+?)(?=, and [\w ]+: |$)")
_SAID = re.compile(r" in ([\w-]+)|, (?:size|color|scent|style|flavor|pack) ([\w-]+)")
_WORD = re.compile(r"[a-z0-9]+(?:['-][a-z0-9]+)*")
_SMALL_TALK = (
    "i im i'm a an the am is are need want find me us looking for to buy please get can you "
    "order with in of and or that has have would "
    "like some my which it be under below less than price"
)
_NO_KEYWORDS = frozenset(_SMALL_TALK.split())

_PAGES = 3
"""Pages of results that it looks at."""


@dataclass(frozen=True)
class Wish:
    """What an instruction asks for: words that describe the thing, values of options, and the most
    it may cost."""

    words: tuple[str, ...]
    values: tuple[str, ...]
    cap: float

    @staticmethod
    def read(task: str) -> Wish:
        """The wish of an instruction."""
        text = task.lower()
        cap = float("inf")
        if found := _CAP.search(text):
            cap = float(found[1])
            text = text[: found.start()]
        text, _, named = text.partition(" with ") if ": " in text else (text, "", "")
        values = _NAMED.findall(named) or [one or other for one, other in _SAID.findall(text)]
        words = [found for found in _WORD.findall(_SAID.sub("", text)) if found not in _NO_KEYWORDS]
        return Wish(tuple(words), tuple(values), cap)

    def query(self) -> str:
        """What to search for."""
        return " ".join((*self.words, *self.values))

    def missing(self, *texts: str) -> list[str]:
        """The describing words that are in none of the texts."""
        known = set(_WORD.findall(" ".join(texts).lower()))
        return [wanted for wanted in self.words if wanted not in known]

    def affords(self, price: str) -> bool:
        """Whether a price like $10.5 or $10.5 to $15.5 is within the limit: of a range, its
        middle."""
        amounts = [float(amount) for amount in re.findall(r"\d+(?:\.\d+)?", price.replace(",", ""))]
        return not amounts or sum(amounts) / len(amounts) <= self.cap


class WebShopExpert:
    """Plays one episode. Each turn is decided anew from the view; only the wording is random."""

    def __init__(self, task: str, rng: random.Random) -> None:
        self._wish = Wish.read(task)
        self._rng = rng

    def act(self, view: AgentView) -> tuple[str, str]:
        """(thought, action) for the current turn.

        TypeError for a view that `Environment.view` did not make.
        """
        recollection = _recollection(view)
        page = recollection.page
        if page.kind == "index":
            return self._say("search", f"search[{self._wish.query()}]")
        if page.kind == "results":
            return self._pick(recollection, page)
        if page.kind == "item":
            return self._judge(recollection, page)
        return self._say("features_done", click("< prev"))

    def waste_turn(self, view: AgentView) -> tuple[str, str]:
        """Read what need not be read, look at more results, search too vaguely: what beginners
        waste their turns on."""
        page = _recollection(view).page
        if page.kind == "index":
            return self._say("wait_search", f"search[{' '.join(self._wish.words[-1:])}]")
        if page.kind == "results":
            return self._say("wait_turn", click("next >" if page.number == 1 else "< prev"))
        if page.kind == "item":
            return self._say(
                "wait_read", click(self._rng.choice(("description", "features", "reviews")))
            )
        return self._say("wait_back", click("< prev"))

    # On a page of results

    def _pick(self, recollection: Recollection, page: Page) -> tuple[str, str]:
        """Open the best of the results seen, or look for more of them."""
        if recollection.query != self._wish.query():
            return self._say("search_again", click("back to search"))
        best = self._best(recollection)
        if best is None and page.number < _PAGES and page.total > 10 * page.number:
            return self._say("next_page", click("next >"))
        if best is None:
            return self._settle(recollection, page)
        number, row = best
        if number != page.number:
            return self._turn_to(number, page)
        missing = self._wish.missing(row[1])
        return self._say(
            "open_maybe" if missing else "open",
            click(row[0].lower()),
            title=row[1].lower(),
            price=row[2],
        )

    def _best(self, recollection: Recollection) -> tuple[int, tuple[str, str, str]] | None:
        """(Page, row) of the most promising affordable result that was not yet looked at; the
        earliest of several."""
        rows = [
            (*self._promise(title), number, place, (asin, title, price))
            for number, shown in sorted(recollection.rows.items())
            for place, (asin, title, price) in enumerate(shown)
            if asin.lower() not in recollection.left and self._wish.affords(price)
        ]
        rows = [row for row in rows if row[0] <= 2]
        if not rows:
            return None
        *_, number, _, row = min(rows)
        return number, row

    def _promise(self, title: str) -> tuple[int, int]:
        """The smaller, the better: 0 has all the words, 1 leaves some out but says nothing else, so
        that they may stand among the features, 2 says something else, 3 is another kind of thing,
        as the last word tells; then how many words are missing."""
        missing = self._wish.missing(title)
        if not missing:
            return 0, 0
        if self._wish.words[-1] in missing:
            return 3, len(missing)
        # One word more is the brand.
        others = set(_WORD.findall(title.lower())) - set(self._wish.words)
        return (1 if len(others) <= 1 else 2), len(missing)

    def _settle(self, recollection: Recollection, page: Page) -> tuple[str, str]:
        """Nothing fits: take again what was left first, or the first that is shown, or search with
        fewer words."""
        for number, rows in sorted(recollection.rows.items()):
            for asin, title, price in rows:
                if asin.lower() in recollection.left[:1] or (not recollection.left and rows):
                    if number != page.number:
                        return self._turn_to(number, page)
                    return self._say(
                        "open_maybe", click(asin.lower()), title=title.lower(), price=price
                    )
        if recollection.left:
            return self._say("search_again", click("back to search"))
        shorter = recollection.query.split()[1:] or list(self._wish.words)
        return self._say("search_less", f"search[{' '.join(shorter)}]")

    def _turn_to(self, number: int, page: Page) -> tuple[str, str]:
        if number < page.number:
            return self._say("first_page", click("< prev"))
        return self._say("next_page", click("next >"))

    # On an item's page

    def _judge(self, recollection: Recollection, page: Page) -> tuple[str, str]:
        """Leave, read the features, choose an option, or buy."""
        settled = recollection.asin in recollection.left
        if not settled:
            if not self._wish.affords(page.price):
                return self._say("too_dear", click("< prev"))
            read = recollection.features.get(recollection.asin)
            if missing := self._wish.missing(page.title, read or ""):
                return self._doubt(" ".join(missing), read is not None)
            offered = {value for values in page.options.values() for value in values}
            if lacking := [value for value in self._wish.values if value not in offered]:
                return self._say("leave", click("< prev"), what=lacking[0])
        for name, values in page.options.items():
            wanted = next((value for value in self._wish.values if value in values), "")
            if wanted and recollection.chosen.get(name) != wanted:
                return self._say("choose", click(wanted), value=wanted)
        return self._say("buy_chosen" if recollection.chosen else "buy_plain", click("buy now"))

    def _doubt(self, missing: str, read: bool) -> tuple[str, str]:
        if read or self._wish.words[-1] in missing.split():
            return self._say("leave", click("< prev"), what=missing)
        return self._say("features", click("features"), what=missing)

    def _say(self, situation: str, action: str, **fields: str) -> tuple[str, str]:
        return word(situation, self._rng, **fields), action


def _recollection(view: AgentView) -> Recollection:
    if not isinstance(view, ShopView):
        raise TypeError(
            "the expert needs what the visit recalls; make the view with environment.view(episode)"
        )
    return view.recollection
