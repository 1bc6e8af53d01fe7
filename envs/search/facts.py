"""What `facts.json` holds, and the passages that say it: the corpus that comes with the project."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

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
    code: str
    name: str
    city: str
    country: str


@dataclass(frozen=True, slots=True)
class Element:
    """`country` and `year` of its discovery are "" where it was not one country's."""

    name: str
    symbol: str
    number: str
    country: str
    year: str


@dataclass(frozen=True)
class Facts:
    """`countries`: values by name of the fact, by country."""

    countries: dict[str, dict[str, str]]
    airports: list[Airport]
    elements: list[Element]


@cache
def load_facts() -> Facts:
    """The facts, read once per process. See `extract`."""
    raw = json.loads((files(__package__) / "facts.json").read_text())
    return Facts(
        raw["countries"],
        [Airport(*row) for row in raw["airports"]],
        [Element(*row) for row in raw["elements"]],
    )


@cache
def passages() -> tuple[str, ...]:
    """One fact each, in a fixed order."""
    facts = load_facts()
    said = []
    for country, values in facts.countries.items():
        for name, value in values.items():
            said.append(
                OF_COUNTRY[name].state(country, value)
                if name in OF_COUNTRY
                else _label(name, country, value)
            )
    for airport in facts.airports:
        said.append(AIRPORT_COUNTRY.state(airport.name, airport.country))
        said.append(AIRPORT_CODE.state(airport.name, airport.code))
        said.append(_label("city", airport.name, airport.city))
    for element in facts.elements:
        said.append(ATOMIC_NUMBER.state(element.name, element.number))
        said.append(ELEMENT_SYMBOL.state(element.name, element.symbol))
        if element.country:
            said.append(DISCOVERY.state(element.name, element.country))
            said.append(_label("year of discovery", element.name, element.year))
    return tuple(said)


def _label(name: str, subject: str, value: str) -> str:
    """A fact that nobody asks for."""
    return f"{name[0].upper()}{name[1:]} of {subject}: {value}."
