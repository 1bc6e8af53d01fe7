"""The demonstrator buys what is asked for, says what it does, and knows no more than the agent."""

import random

import pytest

from envs.play import play_expert_episode
from envs.webshop.environment import WebShop
from envs.webshop.expert import Wish
from envs.webshop.page import SEARCH_FORM

SHOP = WebShop()


def success(count: int, **how: float) -> float:
    return (
        sum(
            play_expert_episode(SHOP, "held_out", i, random.Random(i), **how).success
            for i in range(count)
        )
        / count
    )


def test_it_wins_most_goals_in_spite_of_slips():
    assert success(100, expert_error_rate=0.1) >= 0.7


def test_it_wins_most_goals_in_spite_of_dawdling():
    assert success(100, wasted_turn_rate=0.3) >= 0.7


def test_what_it_clicks_on_is_on_the_page():
    for index in range(60):
        episode = SHOP.start("train", index)
        rng = random.Random(index)
        view = SHOP.view(episode)
        expert = SHOP.expert(episode, rng)
        done = False
        while not done:
            _, action = expert.waste_turn(view) if rng.random() < 0.3 else expert.act(view)
            assert action in view.observation.admissible or (
                action.startswith("search[") and SEARCH_FORM in view.observation.admissible
            )
            result = episode.step(action)
            view.record(action, result.observation)
            done = result.done


def test_its_queries_are_words_of_the_instruction():
    for index in range(100):
        for _, response in play_expert_episode(
            SHOP, "train", index, random.Random(index), wasted_turn_rate=0.3
        ).turns:
            _, found, query = response.partition("<action>search[")
            if found:
                task = SHOP.start("train", index).task.lower()
                assert all(word in task for word in query.removesuffix("]</action>").split())


def test_it_finishes_what_somebody_else_began():
    won = 0
    for index in range(100):
        rng = random.Random(index)
        episode = SHOP.start("train", index)
        view = SHOP.view(episode)
        expert = SHOP.expert(episode, rng)
        done = False
        others = ["search[shirt]", "click[next >]"]
        while not done:
            if others and rng.random() < 0.7:
                action = others.pop(0)
            else:
                clicks = [a for a in view.observation.admissible if a != "click[buy now]"]
                action = rng.choice(clicks) if view.step < 4 else expert.act(view)[1]
            result = episode.step(action)
            view.record(action, result.observation)
            done = result.done
        won += result.success
    assert won >= 85


def test_dawdling_wastes_turns_and_harms_nothing():
    def turns(rate: float) -> float:
        return (
            sum(
                len(
                    play_expert_episode(
                        SHOP, "train", i, random.Random(i), wasted_turn_rate=rate
                    ).turns
                )
                for i in range(60)
            )
            / 60
        )

    assert turns(0.3) > turns(0.0) + 1
    assert success(60, wasted_turn_rate=0.1) >= 0.9


@pytest.mark.parametrize(
    ("task", "words", "values", "cap"),
    [
        (
            "Buy slim, cotton shirt with color: red, and size: s, and price lower than 40.00 "
            "dollars",
            "slim cotton shirt",
            "red s",
            40,
        ),
        ("Buy slim, cotton shirt, and price lower than 40.00 dollars", "slim cotton shirt", "", 40),
        (
            "i need slim cotton shirt in navy, size x-large, and price lower than 40.00 dollars",
            "slim cotton shirt",
            "navy x-large",
            40,
        ),
        ("please get fair trade tea, pack bulk", "fair trade tea", "bulk", float("inf")),
        ("i am looking for a wide pair of boots in red", "wide pair boots", "red", float("inf")),
    ],
)
def test_what_is_asked_for_is_read_from_the_instruction(task, words, values, cap):
    assert Wish.read(task) == Wish(tuple(words.split()), tuple(values.split()), cap)
