"""The facts in `facts.json`, and the passages that say them: the project's own corpus."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from envs.search.relations import (
    AIRPORT_CODE,
    AIRPORT_COUNTRY,
    ATOMIC_NUMBER,
    DISCOVERY,
    ELEMENT_SYMBOL,
    OF_COUNTRY,
)


@dataclass(frozen=True, slots=True)
class Airport:
    """An airport, by its IATA code, with the city and the country that it is in."""

    code: str
    name: str
    city: str
    country: str


@dataclass(frozen=True, slots=True)
class Element:
    """A chemical element.

    `country` and `year` of its discovery are "" where it was not one country's.
    """

    name: str
    symbol: str
    number: str
    country: str
    year: str


@dataclass(frozen=True)
class Facts:
    """All facts. `countries`: values by name of the fact, by country."""

    countries: dict[str, dict[str, str]]
    airports: list[Airport]
    elements: list[Element]


@cache
def load_facts() -> Facts:
    """The facts, read once per process. See `extract`."""
    raw = json.loads(Path(__file__).with_name("facts.json").read_text())
    return Facts(
        raw["countries"],
        [Airport(*row) for row in raw["airports"]],
        [Element(*row) for row in raw["elements"]],
    )


@cache
def load_passages() -> tuple[str, ...]:
    """The passages of the corpus, one fact each, in a fixed order."""
    facts = load_facts()
    passages = []
    for country, values in facts.countries.items():
        for name, value in values.items():
            if name in OF_COUNTRY:
                passages.append(OF_COUNTRY[name].state(country, value))
            else:
                passages.append(_label(name, country, value))
    for airport in facts.airports:
        passages.append(AIRPORT_COUNTRY.state(airport.name, airport.country))
        passages.append(AIRPORT_CODE.state(airport.name, airport.code))
        passages.append(_label("city", airport.name, airport.city))
    for element in facts.elements:
        passages.append(ATOMIC_NUMBER.state(element.name, element.number))
        passages.append(ELEMENT_SYMBOL.state(element.name, element.symbol))
        if element.country:
            passages.append(DISCOVERY.state(element.name, element.country))
            passages.append(_label("year of discovery", element.name, element.year))
    return tuple(passages)


def _label(name: str, subject: str, value: str) -> str:
    """A passage of a fact that nobody asks for."""
    return f"{name[0].upper()}{name[1:]} of {subject}: {value}."
