"""The questions that come with the project: chains of two or three facts.

Each fact is a passage of its own. Every question speaks of one country without naming it. Countries
of `held_out` occur in no question of `train`, and neither do their airports, or the elements that
were discovered there: nothing memorized in training answers a held-out question.
"""

from __future__ import annotations

import random
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from envs.base import Split
from envs.search.facts import Facts, load_facts
from envs.search.relations import ASKED, CLUES, OF_COUNTRY, WORDINGS, Clue, Relation
from envs.search.scoring import contains_phrase, normalize

HELD_OUT_SHARE = 0.2
AIRPORTS_PER_COUNTRY = 2
"""Airports of a country that occur in questions.

Without this limit, countries with many airports would fill the questions.
"""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with all its right answers.

    `source`: the family or the data set it belongs to. `entities`: countries, airports and elements
    that it takes to answer it.
    """

    text: str
    answers: tuple[str, ...]
    source: str
    entities: tuple[str, ...] = ()


@cache
def generate_questions() -> dict[Split, tuple[Question, ...]]:
    """The questions of each split, in an order that mixes the sources, the same everywhere."""
    facts = load_facts()
    rng = random.Random("search questions")
    names = sorted(facts.countries)
    held_out = set(rng.sample(names, round(HELD_OUT_SHARE * len(names))))
    relation_name = {relation: name for name, relation in OF_COUNTRY.items()}
    questions: dict[Split, list[Question]] = {"train": [], "held_out": []}
    for clue in CLUES:
        for known, entities in _starts(clue, facts):
            country = entities[-1]
            split = questions["train"]
            if country in held_out:
                split = questions["held_out"]
            for relation in ASKED:
                value = facts.countries[country].get(relation_name[relation], "")
                place = clue.text.format(x=known)
                text = rng.choice(WORDINGS).format(label=relation.label, place=place)
                if not value or contains_phrase(text, value) or contains_phrase(text, country):
                    continue
                split.append(Question(text, _aliases(relation, value), clue.source, entities))
    # Two countries may share a value (a demonym, say): such an answer could be remembered.
    trained_answers = {answer for question in questions["train"] for answer in question.answers}
    questions["held_out"] = [
        question
        for question in questions["held_out"]
        if trained_answers.isdisjoint(question.answers)
    ]
    for split in questions.values():
        rng.shuffle(split)
    return {name: tuple(split) for name, split in questions.items()}


def _starts(clue: Clue, facts: Facts) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(name in the question, entities on the way from it) of all that leads to one country only.

    The country is the last of the entities.
    """
    match clue.source:
        case "airport" | "airport_code":
            return _airport_starts(clue.source, facts)
        case "element" | "atomic_number" | "element_symbol":
            return _element_starts(clue.source, facts)
        case _:
            return _country_starts(clue.steps[0].relation, facts)


def _airport_starts(source: str, facts: Facts) -> Iterator[tuple[str, tuple[str, ...]]]:
    counts: Counter[str] = Counter()
    for airport in facts.airports:
        counts[airport.country] += 1
        if counts[airport.country] <= AIRPORTS_PER_COUNTRY:
            known = {"airport": airport.name, "airport_code": airport.code}
            yield known[source], (airport.name, airport.country)


def _element_starts(source: str, facts: Facts) -> Iterator[tuple[str, tuple[str, ...]]]:
    for element in facts.elements:
        if element.country:
            known = {
                "element": element.name,
                "atomic_number": element.number,
                "element_symbol": element.symbol,
            }
            yield known[source], (element.name, element.country)


def _country_starts(relation: Relation, facts: Facts) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Values that one country alone has."""
    name = next(name for name, other in OF_COUNTRY.items() if other is relation)
    countries_by_value = defaultdict(list)
    for country, values in facts.countries.items():
        if name in values:
            countries_by_value[normalize(values[name])].append(country)
    for countries in countries_by_value.values():
        if len(countries) == 1:
            country = countries[0]
            yield facts.countries[country][name], (country,)


def _aliases(relation: Relation, value: str) -> tuple[str, ...]:
    """The value as passages have it, without accents, and, for an area, without its unit."""
    decomposed = unicodedata.normalize("NFKD", value)
    without_accents = "".join(char for char in decomposed if not unicodedata.combining(char))
    aliases = [value, without_accents]
    if relation is OF_COUNTRY["area"]:
        aliases.append(value.removesuffix(" sq km"))
    return tuple(dict.fromkeys(aliases))
