"""The shop as text: its pages, what can be clicked on each, and what a click does.

The rules are those of WebShop's text mode.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from envs.webshop.catalogue import Product
from envs.webshop.ranking import Index

SEPARATOR = " [SEP] "
FOUND = 50
PAGE = 10
"""Products that a search finds at most, and that a page shows."""

BACK_TO_SEARCH = "Back to Search"
PREVIOUS = "< Prev"
NEXT = "Next >"
BUY = "Buy Now"
SUB_PAGES = ("Description", "Features", "Reviews")

PageKind = Literal["index", "results", "item", "sub_page", "bought"]

_ACTION = re.compile(r"(.+)\[(.+)\]")
_ASCII_SPACE = " \n\t\f\r"


def parse_action(action: str) -> tuple[str, str]:
    """("search" or "click", its argument in lower case), or ("", "") if it is neither.

    What follows the last ] is ignored.
    """
    found = _ACTION.match(action)
    if found is None or found[1] not in ("search", "click"):
        return "", ""
    return found[1], found[2].lower()


class Shop:
    """The products and the search engine. Read-only, shared by all visits."""

    def __init__(self, products: list[Product]) -> None:
        self.products = products
        self.index = Index([product.document() for product in products])
        self.rows = [
            _visible(product.asin, product.title, product.price_text) for product in products
        ]
        """Each product's segments on a page of results."""

    def search(self, query: str) -> tuple[int, ...]:
        """Numbers of the products found, best first."""
        return self.index.search(query, FOUND)


@dataclass(slots=True)
class Visit:
    """One shopper's visit, from the index page to Buy Now. `instruction` stands on every page.

    `found` and `page` are those of the last search; `product` is the one that is looked at, with
    the option values chosen so far.
    """

    shop: Shop
    instruction: str
    kind: PageKind
    found: tuple[int, ...]
    page: int
    product: Product | None
    sub_page: str
    chosen: dict[str, str]

    @staticmethod
    def begin(shop: Shop, instruction: str) -> Visit:
        """A visit that begins at the index page."""
        return Visit(shop, instruction, "index", (), 1, None, "", {})

    def act(self, action: str) -> None:
        """Do what the action says; nothing if it is not possible here."""
        verb, argument = parse_action(action)
        if verb == "search":
            self._results(self.shop.search(argument), 1)
        elif verb == "click" and argument in self.clickable() and argument != "search":
            self._click(argument)

    def text(self) -> str:
        """The page, as an agent reads it."""
        if self.kind == "index":
            return SEPARATOR.join(("WebShop", *self._head(), "Search"))
        if self.kind == "results":
            segments = [
                *self._head(),
                BACK_TO_SEARCH,
                f"Page {self.page} (Total results: {len(self.found)})",
            ]
            segments += [PREVIOUS, NEXT] if self.page > 1 else [NEXT]
            for number in self._shown():
                segments += self.shop.rows[number]
            return SEPARATOR.join(segments)
        product = self.product
        assert product is not None
        segments = [*self._head(), BACK_TO_SEARCH, PREVIOUS]
        if self.kind == "item":
            for name, values in product.options.items():
                segments += _visible(name, *values)
            segments += _visible(product.title)
            segments += [f"Price: {product.price_text}", "Rating: N.A.", *SUB_PAGES, BUY]
        elif self.kind == "bought":
            segments = [*self._head(), f"You bought {product.asin}"]
        elif self.sub_page == "Description":
            segments += _visible(product.description)
        elif self.sub_page == "Features":
            segments += _visible(*(f" {bullet}" for bullet in product.bullets))
        return SEPARATOR.join(segments)

    def clickable(self) -> dict[str, str]:
        """What can be clicked, in lower case -> the option it is a value of, or "".

        An option value in two options is one of the last.
        """
        if self.kind == "index":
            return {"search": ""}
        if self.kind == "results":
            buttons = [BACK_TO_SEARCH, PREVIOUS, NEXT] if self.page > 1 else [BACK_TO_SEARCH, NEXT]
            buttons += [self.shop.products[number].asin for number in self._shown()]
            return {button.lower(): "" for button in buttons}
        if self.kind == "sub_page":
            return {BACK_TO_SEARCH.lower(): "", PREVIOUS.lower(): ""}
        if self.kind == "bought":
            return {}
        assert self.product is not None
        found = {button.lower(): "" for button in (BACK_TO_SEARCH, PREVIOUS, *SUB_PAGES, BUY)}
        for name, values in self.product.options.items():
            found |= dict.fromkeys(values, name)
        return found

    def _click(self, name: str) -> None:
        """Follow a button by its name, which comes before an option value of the same name."""
        if name == BUY.lower():
            self.kind = "bought"
        elif name == BACK_TO_SEARCH.lower():
            self.kind = "index"
            self.found = ()
            self.page = 1
            self.product = None
            self.chosen = {}
        elif self.kind == "results":
            if name in (NEXT.lower(), PREVIOUS.lower()):
                self._results(self.found, self.page + (1 if name == NEXT.lower() else -1))
            else:
                by_name = {
                    self.shop.products[number].asin.lower(): number for number in self._shown()
                }
                self.kind = "item"
                self.product = self.shop.products[by_name[name]]
        elif name == PREVIOUS.lower():
            if self.kind == "sub_page":
                self.kind = "item"
            else:
                self._results(self.found, self.page)
        elif sub_page := next((page for page in SUB_PAGES if page.lower() == name), ""):
            self.kind = "sub_page"
            self.sub_page = sub_page
        else:
            self.chosen[self.clickable()[name]] = name

    def _results(self, found: tuple[int, ...], page: int) -> None:
        self.kind = "results"
        self.found = found
        self.page = page
        self.product = None
        self.chosen = {}

    def _shown(self) -> tuple[int, ...]:
        return self.found[(self.page - 1) * PAGE : self.page * PAGE]

    def _head(self) -> list[str]:
        return ["Instruction:", *_visible(self.instruction)]


def _visible(*texts: str) -> list[str]:
    """What WebShop's reader of HTML leaves of texts: without white space around them; nothing of an
    empty one or of mere white space with a line break in it; an empty segment of other white space.
    """
    return [
        text.strip() for text in texts if text and (text.strip(_ASCII_SPACE) or "\n" not in text)
    ]
