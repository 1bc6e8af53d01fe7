"""When an answer is right."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.search.scoring import contains_phrase, exact_match, normalize

TEXTS = st.text(alphabet=string.ascii_letters[:6] + "the .,-'é\n\t", max_size=24) | st.text(
    max_size=24
)


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        ("Thimphu", "thimphu"),
        ("  the  Thimphu. ", "Thimphu"),
        ("The Hague", "Hague"),
        ("38,394 sq km", "38394 SQ KM"),
        (".bt", "BT"),
        ("Port-au-Prince", "portauprince"),
        (" The The ", "the the"),
        ("!!!", "!!!"),
    ],
)
def test_spelling_articles_and_punctuation_make_no_difference(answer, target):
    assert exact_match(answer, [target])


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        ("", "The The"),
        ("the", "!!!"),
        ("", ""),
        ("a an the", "the"),
        ("Thimphu in Bhutan", "Thimphu"),
        ("", "Thimphu"),
        ("Theodore", "odore"),
        ("Malé", "Male"),
        ("38 394", "38394"),
        ("an", "ana"),
    ],
)
def test_anything_else_makes_one(answer, target):
    assert not exact_match(answer, [target])


def test_any_of_the_targets_will_do():
    assert exact_match("Male", ["Malé", "Male"])


def test_without_targets_nothing_is_right():
    assert not exact_match("Male", [])


@given(TEXTS)
def test_normalising_twice_changes_nothing_more(text):
    once = normalize(text)
    assert normalize(once) == once


@pytest.mark.parametrize(
    ("text", "phrase", "expected"),
    [
        ("Where is Paro Airport?", "paro airport", True),
        ("Where is Paro?", "Par", False),
        ("the .bt domain", "BT", True),
    ],
)
def test_a_phrase_is_mentioned_word_by_word(text, phrase, expected):
    assert contains_phrase(text, phrase) is expected
