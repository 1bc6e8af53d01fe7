"""The questions that come with the project.

They are real, answerable by search alone, and nothing to memorize.
"""

from collections import Counter

import pytest

from envs.search.extract import shorten_value
from envs.search.facts import load_facts, load_passages
from envs.search.questions import generate_questions
from envs.search.relations import ASKED, CLUES
from envs.search.scoring import contains_phrase, normalize

TRAIN = generate_questions()["train"]
HELD_OUT = generate_questions()["held_out"]


def test_there_are_many():
    assert len(TRAIN) >= 5000
    assert len(HELD_OUT) >= 1000


def test_no_question_is_asked_twice():
    texts = [question.text for question in TRAIN + HELD_OUT]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("part", ["entities", "answers"])
def test_held_out_questions_share_nothing_with_those_of_training(part):
    of_split = [
        {name for question in split for name in getattr(question, part)}
        for split in (TRAIN, HELD_OUT)
    ]
    assert not of_split[0] & of_split[1]
    assert min(map(len, of_split)) > 40


@pytest.mark.slow
def test_no_question_says_its_answer():
    """Closed-book: nor does it name the country that it is about."""
    for question in TRAIN + HELD_OUT:
        assert not any(contains_phrase(question.text, answer) for answer in question.answers)
        assert not contains_phrase(question.text, question.entities[-1])


def test_guessing_the_most_frequent_answer_is_hopeless():
    frequent = Counter(normalize(question.answers[0]) for question in TRAIN).most_common(1)[0][1]
    assert frequent / len(TRAIN) < 0.02


def test_every_source_is_in_both_splits():
    for split in (TRAIN, HELD_OUT):
        assert {question.source for question in split} == {clue.source for clue in CLUES}


def test_every_answer_stands_in_a_passage_about_its_country():
    said = set(load_passages())
    for question in TRAIN + HELD_OUT:
        country = question.entities[-1]
        assert any(relation.state(country, question.answers[0]) in said for relation in ASKED)


def test_a_relation_reads_back_what_it_states():
    facts = load_facts()
    for relation in ASKED:
        for country in facts.countries:
            assert relation.read(relation.state(country, "Some Value, or .two")) == (
                country,
                "Some Value, or .two",
            )


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("anthem", '"Druk tsendhen" (The Thunder Dragon Kingdom)', "Druk tsendhen"),
        ("capital", "Bern", "Bern"),
        ("capital", "Washington, DC", "Washington"),
        ("capital", "Chisinau in Romanian (Kishinev in Russian)", "Chisinau"),
        ("capital", "administered from London", ""),
        ("domain", "metropolitan France - .fr; French Guiana - .gf", ".fr"),
        ("highest point", "Gangkar Puensum 7,570 m", "Gangkar Puensum"),
        ("highest point", "unnamed elevation 5 m", ""),
        ("highest point", "3.6 km W. of Al-Salmi Border Post 300 m", ""),
        ("area", "38,394 sq km", "38,394 sq km"),
        ("population", "892,877 (2025 est.)", "892,877"),
        ("local name", "none", ""),
        ("currency", "euros (EUR) per US dollar -", "euros"),
        ("terrain", "flat; " + "very " * 20 + "flat", "flat"),
    ],
)
def test_facts_are_the_short_forms_of_the_factbook_s_texts(name, text, value):
    assert shorten_value(name, text) == value
