"""A page of the shop, read back from the text and the actions that the agent is shown."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from envs.base import Observation
from envs.webshop.site import BACK_TO_SEARCH, NEXT, PREVIOUS, SEPARATOR

SEARCH_FORM = "search[<your query>]"
"""The form in which the action of searching is listed."""

_COUNT = re.compile(r"Page (\d+) \(Total results: (\d+)\)")
_PRICE = "Price: "


class Result(NamedTuple):
    """A result of a search, as the page shows it."""

    asin: str
    title: str
    price: str


@dataclass
class Page:
    """A page as its text says it.

    `number`, `total` and `results` are those of a page of results; `title`, `price` and `options`
    (name -> values) those of an item; `body` is the text of a sub-page.
    """

    kind: Literal["index", "results", "item", "sub_page"]
    number: int = 1
    total: int = 0
    results: list[Result] = field(default_factory=list)
    title: str = ""
    price: str = ""
    options: dict[str, list[str]] = field(default_factory=dict)
    body: str = ""


def parse_page(observation: Observation) -> Page:
    """The page that an observation shows."""
    segments = observation.text.split(SEPARATOR)
    if segments[0] == "WebShop":
        return Page("index")
    # What stands before the first button is the instruction.
    start = len(segments)
    if BACK_TO_SEARCH in segments:
        start = segments.index(BACK_TO_SEARCH) + 1
    count = _COUNT.fullmatch("".join(segments[start : start + 1]))
    rest = segments[start + 1 :]
    if count is not None:
        results = _parse_results(rest, observation.admissible)
        return Page("results", number=int(count[1]), total=int(count[2]), results=results)
    if click_action("buy now") in observation.admissible:
        return _parse_item(rest, observation.admissible)
    return Page("sub_page", body=" ".join(rest).strip())


def click_action(name: str) -> str:
    """The action of clicking on `name`."""
    return f"click[{name}]"


def _parse_results(segments: list[str], admissible: tuple[str, ...]) -> list[Result]:
    """The results of a page, each of which begins with an asin, which can be clicked."""
    starts = [
        i
        for i, segment in enumerate(segments)
        if segment not in (PREVIOUS, NEXT) and click_action(segment.lower()) in admissible
    ]
    ends = [*starts[1:], len(segments)]
    return [
        Result(segments[start], SEPARATOR.join(segments[start + 1 : end - 1]), segments[end - 1])
        for start, end in zip(starts, ends, strict=False)
    ]


def _parse_item(segments: list[str], admissible: tuple[str, ...]) -> Page:
    """The page of an item: names and values of options, then the title and the price.

    Of options only the values can be clicked.
    """
    page = Page("item")
    end = next(
        (i for i, segment in enumerate(segments) if segment.startswith(_PRICE)), len(segments)
    )
    page.price = "".join(segments[end : end + 1]).removeprefix(_PRICE)
    name = ""
    for segment in segments[:end]:
        if name and click_action(segment) in admissible:
            page.options[name].append(segment)
        else:
            name = segment
            page.options[name] = []
    # What came last was no option: the title, after which there are no values.
    page.title = name
    page.options = {name: values for name, values in page.options.items() if values}
    return page
