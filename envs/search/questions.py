"""The questions that come with the project: chains of two or three facts, each of which is a
passage of its own.

Every question speaks of one country without naming it. Countries of `held_out` occur in no question
of `train`, and neither do their airports, or the elements that were discovered there: what was
memorised in training answers nothing.
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
from envs.search.scoring import mentions, normalize

HELD_OUT_SHARE = 0.2
AIRPORTS_PER_COUNTRY = 2
"""In questions; or else countries with many would fill them."""


@dataclass(frozen=True, slots=True)
class Question:
    """`source`: the family or the data set it belongs to.

    `entities`: countries, airports and elements that it takes to answer it.
    """

    text: str
    answers: tuple[str, ...]
    source: str
    entities: tuple[str, ...] = ()


@cache
def generated_questions() -> dict[Split, tuple[Question, ...]]:
    """All of them, in an order that mixes the sources and is the same everywhere."""
    facts = load_facts()
    rng = random.Random("search questions")
    names = sorted(facts.countries)
    held_out = set(rng.sample(names, round(HELD_OUT_SHARE * len(names))))
    relation_name = {relation: name for name, relation in OF_COUNTRY.items()}
    questions: dict[Split, list[Question]] = {"train": [], "held_out": []}
    for clue in CLUES:
        for known, entities in _starts(clue, facts):
            country = entities[-1]
            for relation in ASKED:
                value = facts.countries[country].get(relation_name[relation], "")
                place = clue.text.format(x=known)
                text = rng.choice(WORDINGS).format(label=relation.label, place=place)
                if value and not mentions(text, value) and not mentions(text, country):
                    question = Question(text, _aliases(relation, value), clue.source, entities)
                    questions["held_out" if country in held_out else "train"].append(question)
    # Two countries may share a value (a demonym, say): such an answer could be remembered.
    trained = {answer for question in questions["train"] for answer in question.answers}
    questions["held_out"] = [
        question for question in questions["held_out"] if trained.isdisjoint(question.answers)
    ]
    for split in questions.values():
        rng.shuffle(split)
    return {split: tuple(asked) for split, asked in questions.items()}


def _starts(clue: Clue, facts: Facts) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(what the question names, the entities on the way from it, the country last), for what leads
    to one country only."""
    match clue.source:
        case "airport" | "airport_code":
            seen: Counter[str] = Counter()
            for airport in facts.airports:
                seen[airport.country] += 1
                if seen[airport.country] <= AIRPORTS_PER_COUNTRY:
                    yield (
                        airport.name if clue.source == "airport" else airport.code,
                        (airport.name, airport.country),
                    )
        case "element" | "atomic_number" | "element_symbol":
            for element in facts.elements:
                if element.country:
                    known = {
                        "element": element.name,
                        "atomic_number": element.number,
                        "element_symbol": element.symbol,
                    }
                    yield known[clue.source], (element.name, element.country)
        case _:
            countries = defaultdict(list)
            values = {}
            relation = clue.steps[0].relation
            name = next(name for name, other in OF_COUNTRY.items() if other is relation)
            for country, facts_of in facts.countries.items():
                if name in facts_of:
                    countries[normalize(facts_of[name])].append(country)
                    values[country] = facts_of[name]
            for same in countries.values():
                if len(same) == 1:
                    yield values[same[0]], (same[0],)


def _aliases(relation: Relation, value: str) -> tuple[str, ...]:
    """The value as passages have it, without accents, and, for an area, without its unit."""
    plain = "".join(
        char for char in unicodedata.normalize("NFKD", value) if not unicodedata.combining(char)
    )
    bare = value.removesuffix(" sq km") if relation is OF_COUNTRY["area"] else value
    return tuple(dict.fromkeys((value, plain, bare)))
