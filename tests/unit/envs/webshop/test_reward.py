"""The worth of a purchase, worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from thefuzz import fuzz

from envs.webshop.reward import COLOR_WORDS, is_match, normalize_color, score_purchase
from tests.fixtures.webshop import goal, product


def test_the_thing_that_was_meant_with_its_options_is_worth_one():
    wanted = goal(options=("navy", "large"), attributes=("cotton",))
    assert score_purchase(wanted.product, ["navy", "large"], wanted).total == 1.0


def test_each_attribute_option_and_the_price_count_the_same():
    """Attributes: 1 of 2. Options: 1 of 2. Price: too high. 2 of 5."""
    wanted = goal(
        attributes=("cotton", "machine washable"), options=("navy", "large"), price_cap=10.0
    )
    result = score_purchase(product(), ["navy", "small"], wanted)
    assert result.total == pytest.approx(2 / 5)
    assert result.components() == {"type": 1.0, "attributes": 0.5, "options": 0.5, "price": 0.0}


def test_without_wanted_options_there_is_no_component_of_options():
    assert score_purchase(product(), ["navy"], goal()).components() == {
        "type": 1.0,
        "attributes": 1.0,
        "price": 1.0,
    }


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, 1.0),
        (
            {"query": "blouse", "path": ("Clothing", "Tops", "Blouses"), "nouns": ("acme", "x")},
            1.0,
        ),  # two parts of the path
        (
            {"query": "blouse", "path": ("Tops", "Clothing"), "nouns": ("acme",)},
            1.0,
        ),  # in any order
        ({"query": "shirt", "path": ("Home",), "nouns": ("acme",)}, 1.0),  # the same query
        (
            {"query": "mug", "path": ("Home",), "nouns": ("acme", "shirt")},
            1.0,
        ),  # a third of the nouns
        ({"query": "shirt", "nouns": ("mug",)}, 0.0),  # no noun, whatever else
    ],
)
def test_the_type_factor(fields, kind):
    assert score_purchase(product(**fields), [], goal()).type == kind


@pytest.mark.parametrize(("shared", "kind"), [(1, 0.1), (2, 0.5), (4, 0.5), (5, 1.0)])
def test_the_type_factor_of_something_else_depends_on_the_shared_nouns(shared, kind):
    """The share of twenty nouns counts: under a tenth, up to a fifth, more."""
    nouns = tuple(f"n{i}" for i in range(20))
    other = product(query="mug", path=("Home",), nouns=nouns[:shared])
    assert score_purchase(other, [], goal(product(nouns=nouns))).type == kind


def test_a_noun_that_the_wanted_title_repeats_counts_twice_among_its_nouns():
    assert score_purchase(
        product(nouns=("shirt",)), [], goal(product(nouns=("shirt", "shirt", "acme")))
    ).title_overlap == pytest.approx(1 / 3)


def test_a_wanted_title_without_nouns_overlaps_by_a_fifth():
    wanted = goal(product(nouns=()))
    assert score_purchase(product(), [], wanted).title_overlap == 0.2
    assert score_purchase(product(query="mug", path=("Home",)), [], wanted).type == 0.5


def test_the_type_factor_multiplies_the_rest():
    nouns = tuple(f"n{i}" for i in range(20))
    wanted = goal(product(nouns=nouns), attributes=("cotton", "blue"))
    assert score_purchase(
        product(query="mug", path=("Home",), nouns=nouns[:2]), [], wanted
    ).total == pytest.approx(0.5 * 2 / 3)


@pytest.mark.parametrize(
    ("fields", "matched"),
    [
        ({"attributes": ("essential oil",)}, True),  # alike
        ({"attributes": ("pure essential oils",)}, True),  # all words are there
        ({"attributes": (), "title": "Essential Oils Set"}, True),
        ({"attributes": (), "bullets": ("Rich in", "Essential Oils")}, True),
        ({"attributes": (), "description": "with essential oils."}, True),
        ({"attributes": ("essence",), "title": "Oils, essential"}, False),
    ],
)
def test_an_attribute_is_met_by_one_like_it_or_by_the_texts(fields, matched):
    assert (
        score_purchase(product(**fields), [], goal(attributes=("essential oils",))).attributes
        == matched
    )


@pytest.mark.parametrize(
    ("chosen", "wanted", "matched"),
    [
        ("navy blue", "sky blue", True),  # blue stands for both
        ("black forest", "black", True),
        ("x-large", "large", True),  # the words of one are all in the other
        ("small", "large", False),
        ("4 ounce", "8 ounce", True),  # 86: so thefuzz says
        ("redwood", "dark red", False),  # the first colour word in the list: dark
        ("redwood", "cherry red", True),
        ("powder snow", "cool powder snow", True),
    ],
)
def test_options_match_by_colour_or_by_words(chosen, wanted, matched):
    assert score_purchase(product(), [chosen], goal(options=(wanted,))).options == matched


@pytest.mark.parametrize(
    ("chosen", "pair", "matched"),
    [
        ("navy", ("color", "navy"), True),
        ("sky blue", ("color", "navy blue"), True),  # blue is one of the words of the pair
        ("redwood", ("color", "redwood"), False),  # red is not: nor is it at WebShop
        ("x-large", ("size", "x-large"), True),
        (
            "x-large",
            ("size", "large"),
            False,
        ),  # "size" is one of the words: less alike than the values alone
    ],
)
def test_the_options_of_a_synthetic_goal_are_compared_as_pairs(chosen, pair, matched):
    assert score_purchase(product(), [chosen], goal(options=dict([pair]))).options == matched


@pytest.mark.parametrize(("price", "met"), [(30.0, True), (30.01, False)])
def test_the_price_may_be_the_limit(price, met):
    assert score_purchase(product(price=price), [], goal(price_cap=30.0)).price is met


@pytest.mark.parametrize(
    ("value", "colour"),
    [
        ("", ""),
        ("violet lavender", "lavender"),
        ("steelivy fuchsia", "fuchsia"),
        ("123alabaster", "alabaster"),
        ("x", "x"),
    ],
)
def test_the_first_colour_of_the_list_stands_for_a_value(value, colour):
    assert normalize_color(value) == colour


def test_the_colours_are_in_webshop_s_order():
    assert list(COLOR_WORDS) == sorted(COLOR_WORDS)


VOCABULARY = "a oil oils x-large large dark-red é ñ 12 _ ! size"
WORDS = st.one_of(
    st.text(max_size=12), st.lists(st.sampled_from(VOCABULARY.split()), max_size=4).map(" ".join)
)


@given(WORDS, WORDS)
def test_two_texts_are_alike_if_thefuzz_says_so(one, other):
    assert is_match(one, other) == (fuzz.token_set_ratio(one, other) > 85)
