"""Goals from instructions, their price caps, and the splits."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.webshop.environment import load_world
from envs.webshop.files import read_files
from envs.webshop.goals import build_human_goals, build_synthetic_goals, split_goals
from envs.webshop.nouns import find_title_nouns
from envs.webshop.products import build_products
from envs.webshop.reward import is_match, normalize_color, score_purchase
from envs.webshop.words import load_words
from tests.fixtures.webshop import goal, product, raw_product, write_shop

WORLD = load_world("")


def made(tmp_path, maker, **parts):
    files = read_files(write_shop(tmp_path, **parts))
    return maker(build_products(files, find_title_nouns(files)), files)


def test_a_human_goal_is_an_instruction_with_a_price_limit(tmp_path):
    found = made(tmp_path, build_human_goals, products=[raw_product()])[0]
    assert (
        found.instruction
        == f"i need B000000001, and price lower than {found.price_cap:.2f} dollars"
    )
    assert (found.attributes, found.options) == (("cotton",), ("red",))


def test_an_instruction_that_names_no_attribute_is_no_goal(tmp_path):
    human = {
        "B000000001": [
            {"instruction": "x", "instruction_attributes": [], "instruction_options": []}
        ]
    }
    assert made(tmp_path, build_human_goals, products=[raw_product()], human=human) == []


def test_a_synthetic_goal_is_made_of_each_combination_of_options(tmp_path):
    options = {"Size": [{"value": "S"}, {"value": "L"}], "Color": [{"value": "red"}]}
    found = made(
        tmp_path, build_synthetic_goals, products=[raw_product(customization_options=options)]
    )
    assert [g.instruction.partition(", and price")[0] for g in found] == [
        "Buy B000000001 with color: red, and size: s",
        "Buy B000000001 with color: red, and size: l",
    ]
    assert len({g.price_cap for g in found}) == 1


def test_a_product_without_options_has_one_synthetic_goal(tmp_path):
    found = made(tmp_path, build_synthetic_goals, products=[raw_product(customization_options="")])
    assert [g.instruction.partition(", and")[0] for g in found] == ["Buy B000000001"]


@pytest.mark.parametrize(
    "entry",
    [{}, {"instruction": "Buy it"}, {"instruction": "Buy it", "instruction_attributes": []}],
)
def test_a_product_without_instruction_or_attributes_has_no_synthetic_goal(tmp_path, entry):
    assert (
        made(
            tmp_path,
            build_synthetic_goals,
            products=[raw_product()],
            attributes={"B000000001": entry},
        )
        == []
    )


@given(st.integers(1, 99_900))
def test_the_price_limit_is_one_of_the_next_four_tens_but_the_first(cents):
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        price = cents / 100
        found = made(
            Path(directory), build_human_goals, products=[raw_product(pricing=f"${price}")]
        )[0]
    above = [10.0 * i for i in range(1, 100) if 10.0 * i > price][1:4]
    assert (
        found.price_cap in above
        if above
        else found.price_cap == 1_000_000 and "price" not in found.instruction
    )


def some_goals(count: int) -> list:
    return [goal(product(f"B{i}"), instruction=f"i need number {i}") for i in range(count)]


@pytest.mark.parametrize(
    ("goals", "held_out", "train"),
    [(12_000, 500, 10_500), (3_000, 500, 1_500), (600, 100, 300), (1, 1, 0)],
)
def test_the_split_is_webshop_s_scaled_for_few_goals(goals, held_out, train):
    splits = split_goals(some_goals(goals), None)
    assert (len(splits["held_out"]), len(splits["train"])) == (held_out, train)


def test_a_goal_that_asks_for_the_same_as_a_held_out_one_is_not_trained_on():
    splits = split_goals(some_goals(30) * 4, None)
    assert not {g.key() for g in splits["train"]} & {g.key() for g in splits["held_out"]}


def test_the_default_shop_has_more_than_a_thousand_products_of_five_categories():
    assert len(WORLD.shop.products) >= 1000
    assert {p.category for p in WORLD.shop.products} == {
        "fashion",
        "beauty",
        "electronics",
        "garden",
        "grocery",
    }


@pytest.mark.parametrize("kind", ["human", "synthetic"])
def test_no_product_is_meant_in_both_splits_of_the_default_shop(kind):
    meant = {
        split: {g.product.asin for each in WORLD.goals.values() for g in each[split]}
        for split in ("train", "held_out")
    }
    assert not meant["train"] & meant["held_out"]
    assert len(WORLD.goals[kind]["train"]) > 2000
    assert len(WORLD.goals[kind]["held_out"]) > 500


@pytest.mark.slow
def test_every_goal_of_the_default_shop_is_met_by_what_was_meant():
    for splits in WORLD.goals.values():
        for found in (*splits["train"], *splits["held_out"]):
            options = found.options.values() if isinstance(found.options, dict) else found.options
            assert score_purchase(found.product, options, found).total == 1.0, found


def test_values_of_an_option_can_be_told_apart():
    """But for a size that contains another one, as x-large does large."""
    words = load_words()
    for group in words.groups:
        for option in group.options:
            values = words.values_of(group, option)
            pairs = [
                (a, b)
                for a in values
                for b in values
                if a < b and is_match(normalize_color(a), normalize_color(b))
            ]
            assert pairs in ([], [("large", "x-large")])


def test_the_kinds_of_the_default_shop_are_different_things():
    kinds = [kind for group in load_words().groups for kind in group.kinds]
    assert max(Counter(kinds).values()) == 1
