"""The shop as text: its pages, the buttons on each, and what a click does.

The rules are those of WebShop's text mode.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from envs.webshop.products import Product
from envs.webshop.ranking import LuceneIndex

SEPARATOR = " [SEP] "
MAX_RESULTS = 50
"""Products that a search finds at most."""
PAGE_SIZE = 10
"""Results that a page shows."""

BACK_TO_SEARCH = "Back to Search"
PREVIOUS = "< Prev"
NEXT = "Next >"
BUY = "Buy Now"
SUB_PAGES = ("Description", "Features", "Reviews")
_SUB_PAGES_BY_NAME = {page.lower(): page for page in SUB_PAGES}

PageKind = Literal["index", "results", "item", "sub_page", "bought"]

_ACTION = re.compile(r"(.+)\[(.+)\]")
_ASCII_SPACE = " \n\t\f\r"


def parse_action(action: str) -> tuple[str, str]:
    """("search" or "click", its argument in lower case), or ("", "") if it is neither.

    What follows the last ] is ignored.
    """
    match = _ACTION.match(action)
    if match is None or match[1] not in ("search", "click"):
        return "", ""
    return match[1], match[2].lower()


class Shop:
    """The products and the search engine. Read-only, shared by all visits."""

    def __init__(self, products: list[Product]) -> None:
        self.products = products
        self.index = LuceneIndex([product.document() for product in products])
        self.rows = [
            _visible(product.asin, product.title, product.price_text) for product in products
        ]
        """Each product's segments on a page of results."""

    def search(self, query: str) -> tuple[int, ...]:
        """Numbers of the products found, best first."""
        return self.index.search(query, MAX_RESULTS)


@dataclass(slots=True)
class Visit:
    """One shopper's visit, from the index page to Buy Now. `instruction` stands on every page.

    `results` (numbers of products) and `page` are those of the last search; `product` is the one
    that is looked at, with the option values `chosen` so far.
    """

    shop: Shop
    instruction: str
    kind: PageKind
    results: tuple[int, ...]
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
            self._show_results(self.shop.search(argument), 1)
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
                f"Page {self.page} (Total results: {len(self.results)})",
                *self._page_buttons(),
            ]
            for number in self._page_results():
                segments += self.shop.rows[number]
            return SEPARATOR.join(segments)
        product = self.product
        assert product is not None
        if self.kind == "bought":
            return SEPARATOR.join((*self._head(), f"You bought {product.asin}"))
        segments = [*self._head(), BACK_TO_SEARCH, PREVIOUS]
        if self.kind == "item":
            for name, values in product.options.items():
                segments += _visible(name, *values)
            segments += _visible(product.title)
            segments += [f"Price: {product.price_text}", "Rating: N.A.", *SUB_PAGES, BUY]
        elif self.sub_page == "Description":
            segments += _visible(product.description)
        elif self.sub_page == "Features":
            segments += _visible(*(f" {bullet}" for bullet in product.bullets))
        return SEPARATOR.join(segments)

    def clickable(self) -> dict[str, str]:
        """Buttons and option values, in lower case -> the option that it is a value of, or "".

        An option value in two options is one of the last.
        """
        if self.kind == "index":
            return {"search": ""}
        if self.kind == "results":
            asins = [self.shop.products[number].asin for number in self._page_results()]
            buttons = [BACK_TO_SEARCH, *self._page_buttons(), *asins]
            return {button.lower(): "" for button in buttons}
        if self.kind == "sub_page":
            return {BACK_TO_SEARCH.lower(): "", PREVIOUS.lower(): ""}
        if self.kind == "bought":
            return {}
        assert self.product is not None
        clickable = {button.lower(): "" for button in (BACK_TO_SEARCH, PREVIOUS, *SUB_PAGES, BUY)}
        for name, values in self.product.options.items():
            clickable |= dict.fromkeys(values, name)
        return clickable

    def _click(self, name: str) -> None:
        """Follow a button by its name, which comes before an option value of the same name."""
        if name == BUY.lower():
            self.kind = "bought"
        elif name == BACK_TO_SEARCH.lower():
            self.kind = "index"
            self.results = ()
            self.page = 1
            self.product = None
            self.chosen = {}
        elif self.kind == "results":
            self._click_on_results(name)
        elif name == PREVIOUS.lower() and self.kind == "sub_page":
            self.kind = "item"
        elif name == PREVIOUS.lower():
            self._show_results(self.results, self.page)
        elif name in _SUB_PAGES_BY_NAME:
            self.kind = "sub_page"
            self.sub_page = _SUB_PAGES_BY_NAME[name]
        else:
            self.chosen[self.clickable()[name]] = name

    def _click_on_results(self, name: str) -> None:
        if name == NEXT.lower():
            self._show_results(self.results, self.page + 1)
        elif name == PREVIOUS.lower():
            self._show_results(self.results, self.page - 1)
        else:
            products = (self.shop.products[number] for number in self._page_results())
            by_name = {product.asin.lower(): product for product in products}
            self.kind = "item"
            self.product = by_name[name]

    def _show_results(self, results: tuple[int, ...], page: int) -> None:
        self.kind = "results"
        self.results = results
        self.page = page
        self.product = None
        self.chosen = {}

    def _page_results(self) -> tuple[int, ...]:
        return self.results[(self.page - 1) * PAGE_SIZE : self.page * PAGE_SIZE]

    def _page_buttons(self) -> list[str]:
        if self.page > 1:
            return [PREVIOUS, NEXT]
        return [NEXT]

    def _head(self) -> list[str]:
        return ["Instruction:", *_visible(self.instruction)]


def _visible(*texts: str) -> list[str]:
    """The segments that WebShop's reader of HTML makes of texts.

    They are without white space around them. An empty text, or mere white space with a line break
    in it, leaves none; other white space leaves an empty one.
    """
    return [
        text.strip() for text in texts if text and (text.strip(_ASCII_SPACE) or "\n" not in text)
    ]
