"""A demonstrator that knows what the prompt shows.

It searches by the words of the instruction, opens the result whose title has most of them at an
affordable price, reads the features where the title leaves a doubt, chooses the options asked for,
and buys. It also finishes visits that somebody else began, so it can be asked at any turn.

It understands the wordings of the generated catalogue; in other instructions it takes every word
that is not in a short list for one that counts.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import NamedTuple

from envs.view import AgentView
from envs.webshop.memory import ShopView, VisitMemory
from envs.webshop.page import Page, Result, click_action
from envs.webshop.thoughts import word_thought

_CAP = re.compile(r", and price lower than ([\d.]+) dollars$")
_NAMED = re.compile(r"(?:^|, and )[\w ]+: ([^:]+?)(?=, and [\w ]+: |$)")
_INLINE = re.compile(r" in ([\w-]+)|, (?:size|color|scent|style|flavor|pack) ([\w-]+)")
_WORD = re.compile(r"[a-z0-9]+(?:['-][a-z0-9]+)*")
_SMALL_TALK = """
    i im i'm a an the am is are need want find me us looking for to buy please get can you order
    with in of and or that has have would like some my which it be under below less than price
"""
_NO_KEYWORDS = frozenset(_SMALL_TALK.split())

_MAX_PAGES = 3
"""Pages of results that it looks at."""


@dataclass(frozen=True)
class Wish:
    """The content of an instruction.

    `words` describe the thing; `values` are those of options; `cap` is the most it may cost.
    """

    words: tuple[str, ...]
    values: tuple[str, ...]
    cap: float

    @staticmethod
    def read(task: str) -> Wish:
        """The wish of an instruction."""
        text = task.lower()
        cap = float("inf")
        cap_phrase = _CAP.search(text)
        if cap_phrase is not None:
            cap = float(cap_phrase[1])
            text = text[: cap_phrase.start()]
        named_options = ""
        if ": " in text:
            text, _, named_options = text.partition(" with ")
        values = _NAMED.findall(named_options)
        if not values:
            values = [color or other for color, other in _INLINE.findall(text)]
        words = _WORD.findall(_INLINE.sub("", text))
        keywords = [keyword for keyword in words if keyword not in _NO_KEYWORDS]
        return Wish(tuple(keywords), tuple(values), cap)

    def query(self) -> str:
        """The words to search for."""
        return " ".join((*self.words, *self.values))

    def missing(self, *texts: str) -> list[str]:
        """The describing words that are in none of the texts."""
        known = set(_WORD.findall(" ".join(texts).lower()))
        return [wanted for wanted in self.words if wanted not in known]

    def affords(self, price: str) -> bool:
        """True if a price like $10.5, or the middle of $10.5 to $15.5, is within the limit."""
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
        memory = _visit_memory(view)
        page = memory.page
        if page.kind == "index":
            return self._say("search", f"search[{self._wish.query()}]")
        if page.kind == "results":
            return self._choose_result(memory, page)
        if page.kind == "item":
            return self._act_on_item(memory, page)
        return self._say("features_done", click_action("< prev"))

    def waste_turn(self, view: AgentView) -> tuple[str, str]:
        """Read what need not be read, look at more results, or search too vaguely.

        Beginners waste their turns on these.
        """
        page = _visit_memory(view).page
        if page.kind == "index":
            return self._say("wait_search", f"search[{' '.join(self._wish.words[-1:])}]")
        if page.kind == "results" and page.number == 1:
            return self._say("wait_turn", click_action("next >"))
        if page.kind == "results":
            return self._say("wait_turn", click_action("< prev"))
        if page.kind == "item":
            sub_page = self._rng.choice(("description", "features", "reviews"))
            return self._say("wait_read", click_action(sub_page))
        return self._say("wait_back", click_action("< prev"))

    # On a page of results

    def _choose_result(self, memory: VisitMemory, page: Page) -> tuple[str, str]:
        """Open the best of the results seen, or look for more of them."""
        if memory.query != self._wish.query():
            return self._say("search_again", click_action("back to search"))
        best = self._find_best(memory)
        if best is not None:
            situation = "open"
            if self._wish.missing(best.result.title):
                situation = "open_maybe"
            return self._open(situation, best, page)
        if page.number < _MAX_PAGES and page.total > 10 * page.number:
            return self._say("next_page", click_action("next >"))
        return self._choose_fallback(memory, page)

    def _open(self, situation: str, candidate: _Candidate, page: Page) -> tuple[str, str]:
        """Open a result, or turn towards the page that it is on."""
        if candidate.page_number < page.number:
            return self._say("first_page", click_action("< prev"))
        if candidate.page_number > page.number:
            return self._say("next_page", click_action("next >"))
        result = candidate.result
        return self._say(
            situation,
            click_action(result.asin.lower()),
            title=result.title.lower(),
            price=result.price,
        )

    def _find_best(self, memory: VisitMemory) -> _Candidate | None:
        """The most promising affordable result that was not yet looked at; of several the first."""
        candidates = []
        for candidate in _candidates(memory):
            result = candidate.result
            if result.asin.lower() in memory.rejected or not self._wish.affords(result.price):
                continue
            mismatch, missing = self._rank_title(result.title)
            if mismatch <= 2:
                candidates.append((mismatch, missing, candidate))
        if not candidates:
            return None
        _, _, best = min(candidates)
        return best

    def _rank_title(self, title: str) -> tuple[int, int]:
        """(mismatch, number of missing words): the smaller, the better.

        The mismatch is 0 if the title has all the words; 1 if it leaves some out but says nothing
        else, so that they may stand among the features; 2 if it says something else; 3 if it is
        another kind of thing, as the last word tells.
        """
        missing = self._wish.missing(title)
        if not missing:
            return 0, 0
        if self._wish.words[-1] in missing:
            return 3, len(missing)
        # One word more is the brand.
        others = set(_WORD.findall(title.lower())) - set(self._wish.words)
        if len(others) <= 1:
            return 1, len(missing)
        return 2, len(missing)

    def _choose_fallback(self, memory: VisitMemory, page: Page) -> tuple[str, str]:
        """Open the item that was rejected first, or the first result, or search anew.

        Nothing fits. A new search has fewer words.
        """
        for candidate in _candidates(memory):
            if not memory.rejected or candidate.result.asin.lower() == memory.rejected[0]:
                return self._open("open_maybe", candidate, page)
        if memory.rejected:
            return self._say("search_again", click_action("back to search"))
        shorter = memory.query.split()[1:] or list(self._wish.words)
        return self._say("search_less", f"search[{' '.join(shorter)}]")

    # On an item's page

    def _act_on_item(self, memory: VisitMemory, page: Page) -> tuple[str, str]:
        """Leave, read the features, choose an option, or buy."""
        # An item that was rejected, and opened again for want of a better one, is bought.
        if memory.asin not in memory.rejected:
            objection = self._object(memory, page)
            if objection is not None:
                return objection
        for name, values in page.options.items():
            wanted = next((value for value in self._wish.values if value in values), "")
            if wanted and memory.chosen.get(name) != wanted:
                return self._say("choose", click_action(wanted), value=wanted)
        if memory.chosen:
            return self._say("buy_chosen", click_action("buy now"))
        return self._say("buy_plain", click_action("buy now"))

    def _object(self, memory: VisitMemory, page: Page) -> tuple[str, str] | None:
        """Leave an item that does not fit, or check its features; None if it fits."""
        if not self._wish.affords(page.price):
            return self._say("too_dear", click_action("< prev"))
        features = memory.features.get(memory.asin)
        missing = self._wish.missing(page.title, features or "")
        if missing and features is None and self._wish.words[-1] not in missing:
            return self._say("features", click_action("features"), what=" ".join(missing))
        if missing:
            return self._say("leave", click_action("< prev"), what=" ".join(missing))
        offered = {value for values in page.options.values() for value in values}
        for value in self._wish.values:
            if value not in offered:
                return self._say("leave", click_action("< prev"), what=value)
        return None

    def _say(self, situation: str, action: str, **fields: str) -> tuple[str, str]:
        return word_thought(situation, self._rng, **fields), action


class _Candidate(NamedTuple):
    """A result, and where it was seen."""

    page_number: int
    position: int
    result: Result


def _candidates(memory: VisitMemory) -> list[_Candidate]:
    """All results of the last search that were seen, in their order."""
    return [
        _Candidate(number, position, result)
        for number, results in sorted(memory.results.items())
        for position, result in enumerate(results)
    ]


def _visit_memory(view: AgentView) -> VisitMemory:
    if not isinstance(view, ShopView):
        raise TypeError(
            "the expert needs what the visit recalls; make the view with environment.view(episode)"
        )
    return view.visit_memory
