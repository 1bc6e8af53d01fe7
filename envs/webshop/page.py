"""A page of the shop, read back from what the agent is shown: the text, and the actions that are
listed with it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from envs.base import Observation
from envs.webshop.site import SEPARATOR

SEARCH_FORM = "search[<your query>]"
"""How the action of searching is listed."""

_COUNT = re.compile(r"Page (\d+) \(Total results: (\d+)\)")
_PRICE = "Price: "


@dataclass
class Page:
    """`rows`: (asin, title, price) of results, as the text has them. `options`: name -> values of
    an item. `body`: what a sub-page says."""

    kind: Literal["index", "results", "item", "sub_page"]
    number: int = 1
    total: int = 0
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    title: str = ""
    price: str = ""
    options: dict[str, list[str]] = field(default_factory=dict)
    body: str = ""


def read_page(observation: Observation) -> Page:
    """What an observation shows."""
    segments = observation.text.split(SEPARATOR)
    if segments[0] == "WebShop":
        return Page("index")
    segments = (
        segments[segments.index("Back to Search") + 1 :] if "Back to Search" in segments else []
    )
    if segments and (count := _COUNT.fullmatch(segments[0])):
        return Page(
            "results",
            number=int(count[1]),
            total=int(count[2]),
            rows=_rows(segments[1:], observation.admissible),
        )
    if click("buy now") in observation.admissible:
        return _item(segments[1:], observation.admissible)
    return Page("sub_page", body=" ".join(segments[1:]).strip())


def click(name: str) -> str:
    """The action of clicking on `name`."""
    return f"click[{name}]"


def _rows(segments: list[str], admissible: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Each row begins with an asin, which can be clicked; the buttons before them are no rows."""
    starts = [
        i
        for i, segment in enumerate(segments)
        if segment not in ("< Prev", "Next >") and click(segment.lower()) in admissible
    ]
    ends = [*starts[1:], len(segments)]
    return [
        (segments[start], SEPARATOR.join(segments[start + 1 : end - 1]), segments[end - 1])
        for start, end in zip(starts, ends, strict=False)
    ]


def _item(segments: list[str], admissible: tuple[str, ...]) -> Page:
    """Option names and their values, of which only the values can be clicked, then the title and
    the price."""
    page = Page("item")
    end = next(
        (i for i, segment in enumerate(segments) if segment.startswith(_PRICE)), len(segments)
    )
    page.price = "".join(segments[end : end + 1]).removeprefix(_PRICE)
    name = ""
    for segment in segments[:end]:
        if name and click(segment) in admissible:
            page.options[name].append(segment)
        else:
            name = segment
            page.options[name] = []
    # What came last was no option: the title, after which there are no values.
    page.title = name
    page.options = {name: values for name, values in page.options.items() if values}
    return page
