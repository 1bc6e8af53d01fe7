"""The demonstrator wins, says what it does, and knows no more than the agent."""

import random
import re

import pytest

from envs.alfworld.environment import AlfWorld
from envs.alfworld.scenes import load_facts
from envs.play import play_expert_episode
from envs.response import parse_think_action

SMALL = AlfWorld()
REAL = AlfWorld("real")


def searched(environment: AlfWorld, index: int) -> list[str]:
    played = play_expert_episode(environment, "train", index, random.Random(index))
    return re.findall(
        r"<action>go to (.*)</action>", " ".join(response for _, response in played.turns)
    )


def test_in_small_rooms_it_searches_in_listed_order():
    """The likely place of a thing is left to be learned."""
    in_order = 0
    for index in range(100):
        listed = (
            re.search("Unsearched: (.*)", SMALL.prompt(SMALL.view(SMALL.start("train", index))))
            .group(1)
            .split("; ")
        )
        in_order += searched(SMALL, index)[0] == listed[0]
    assert 80 <= in_order <= 97


def test_in_real_rooms_it_searches_likely_places_first():
    """A mug is never first looked for in a bathtub."""
    facts = load_facts()
    contains = {
        kind.lower(): {thing.lower() for thing in things} for kind, things in facts.contains.items()
    }
    likely = 0
    for index in range(100):
        game = REAL.game("train", index)
        likely += game.goal.target.lower() in contains.get(
            searched(REAL, index)[0].rsplit(" ", 1)[0], ()
        )
    assert likely >= 80


@pytest.mark.slow
@pytest.mark.parametrize("environment", [SMALL, REAL], ids=["small", "real"])
def test_it_finishes_what_somebody_else_began(environment):
    won = 0
    for index in range(100):
        rng = random.Random(index)
        episode = environment.start("train", index)
        view = environment.view(episode)
        expert = environment.expert(episode, rng)
        for turn in range(environment.max_turns):
            action = rng.choice(view.observation.admissible) if turn < 6 else expert.act(view)[1]
            result = episode.step(action)
            view.record(action, result.observation)
            if result.done:
                won += result.success
                break
    assert won >= 60


def test_slips_are_played_but_not_demonstrated():
    plain = play_expert_episode(SMALL, "train", 3, random.Random(0))
    slipped = [
        play_expert_episode(SMALL, "train", 3, random.Random(seed), expert_error_rate=0.3)
        for seed in range(30)
    ]
    assert any(episode.turns[0][0] == plain.turns[0][0] for episode in slipped)
    assert any(
        number(prompt) > i
        for episode in slipped
        for i, (prompt, _) in enumerate(episode.turns, start=1)
    )
    for episode in slipped:
        for prompt, response in episode.turns:
            listed = re.search("Actions: (.*)", prompt).group(1).split("; ")
            assert parse_think_action(response, tuple(listed)).valid


def test_most_episodes_are_won_in_spite_of_slips():
    assert (
        sum(
            play_expert_episode(SMALL, "train", i, random.Random(i), expert_error_rate=0.2).success
            for i in range(100)
        )
        >= 75
    )


def number(prompt: str) -> int:
    """Return the number of the turn that a prompt asks for."""
    return int(re.search(r"Step (\d+):", prompt).group(1))


def test_dawdling_is_demonstrated_and_wastes_turns():
    def idle_share(rate: float) -> float:
        turns = [
            response
            for i in range(40)
            for _, response in play_expert_episode(
                SMALL, "train", i, random.Random(i), wasted_turn_rate=rate
            ).turns
        ]
        return sum(
            re.search("<action>(look|inventory|examine .*)</action>", response) is not None
            for response in turns
        ) / len(turns)

    assert idle_share(0.0) < 0.02
    assert 0.25 < idle_share(0.35) < 0.45
