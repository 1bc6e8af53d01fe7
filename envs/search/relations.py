"""The kinds of facts: how a passage states one, how one asks for it, and how it is read back.

A relation holds between a subject and a value, and can be followed both ways: `forward` from a
country to its capital, backward from a capital to its country. A question is a chain of such steps;
each takes one search.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Relation:
    """A kind of fact.

    `sentence` has {subject} and {value}. `label` names the value in questions and queries.
    """

    label: str
    sentence: str

    def state(self, subject: str, value: str) -> str:
        """The passage that states one fact."""
        return self.sentence.format(subject=subject, value=value)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        pattern = ""
        for part in re.split(r"(\{\w+\})", self.sentence):
            if part.startswith("{"):
                pattern += f"(?P<{part[1:-1]}>.+)"
            else:
                pattern += re.escape(part)
        return re.compile(pattern)

    def read(self, passage: str) -> tuple[str, str] | None:
        """(subject, value) if the passage states this relation."""
        match = self._pattern.fullmatch(passage)
        if match is None:
            return None
        return match["subject"], match["value"]


@dataclass(frozen=True)
class Step:
    """One search: from what is known, {x}, to something else.

    `finds` says in words what that is.
    """

    relation: Relation
    forward: bool
    query: str
    finds: str

    def read(self, passage: str, known: str) -> str | None:
        """The other end of a fact about `known`; None if the passage states no such fact."""
        fact = self.relation.read(passage)
        if fact is None:
            return None
        start, end = fact
        if not self.forward:
            end, start = fact
        if start != known:
            return None
        return end


@dataclass(frozen=True)
class Clue:
    """A way to speak of a country without its name, as `the country whose capital is {x}`.

    `source` names the family of questions that start from it.
    """

    source: str
    text: str
    steps: tuple[Step, ...]


def _country(label: str) -> Relation:
    return Relation(label, f"The {label} of {{subject}} is {{value}}.")


OF_COUNTRY = {
    name: _country(label)
    for name, label in {
        "official name": "official name",
        "local name": "local name",
        "capital": "capital",
        "anthem": "national anthem",
        "symbol": "national symbol",
        "domain": "internet domain",
        "aircraft prefix": "aircraft prefix",
        "highest point": "highest point",
        "adjective": "demonym",
        "area": "total area",
        "population": "population",
    }.items()
}
"""Relations of countries, by the fact's name in facts.json.

Its other facts about countries are passages only.
"""

AIRPORT_CODE = Relation("airport code", "The airport code of {subject} is {value}.")
AIRPORT_COUNTRY = Relation("country", "{subject} is an airport in {value}.")
ATOMIC_NUMBER = Relation("atomic number", "The atomic number of {subject} is {value}.")
ELEMENT_SYMBOL = Relation("chemical symbol", "The chemical symbol of {subject} is {value}.")
DISCOVERY = Relation("country", "{subject} was discovered in {value}.")

ASKED = tuple(
    OF_COUNTRY[name]
    for name in (
        "capital",
        "highest point",
        "domain",
        "adjective",
        "official name",
        "area",
        "population",
    )
)
"""Relations whose values are the answers of questions."""

WORDINGS = ("What is the {label} of {place}?", "Tell me the {label} of {place}.")


def last_step(relation: Relation) -> Step:
    """The step from a country to the answer."""
    return Step(relation, True, f"{relation.label} of {{x}}", relation.label)


def _backward(relation: Relation, finds: str) -> Step:
    return Step(relation, False, f"{relation.label} {{x}}", finds)


def _by(name: str) -> Clue:
    relation = OF_COUNTRY[name]
    return Clue(
        name.replace(" ", "_"),
        f"the country whose {relation.label} is {{x}}",
        (_backward(relation, "country"),),
    )


_AIRPORT = Step(AIRPORT_COUNTRY, True, "country of {x}", "country")
_ELEMENT = Step(DISCOVERY, True, "{x} was discovered in", "country")

CLUES = (
    *(
        _by(name)
        for name in (
            "anthem",
            "highest point",
            "domain",
            "capital",
            "symbol",
            "local name",
            "aircraft prefix",
        )
    ),
    Clue("airport", "the country where {x} is", (_AIRPORT,)),
    Clue(
        "airport_code",
        "the country where the airport {x} is",
        (_backward(AIRPORT_CODE, "airport"), _AIRPORT),
    ),
    Clue("element", "the country where {x} was discovered", (_ELEMENT,)),
    Clue(
        "atomic_number",
        "the country where element number {x} was discovered",
        (_backward(ATOMIC_NUMBER, "element"), _ELEMENT),
    ),
    Clue(
        "element_symbol",
        "the country where the element {x} was discovered",
        (_backward(ELEMENT_SYMBOL, "element"), _ELEMENT),
    ),
)
