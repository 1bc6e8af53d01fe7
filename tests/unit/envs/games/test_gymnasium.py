"""Gymnasium's games behind our interface."""

from __future__ import annotations

import re
import string

import gymnasium
import pytest
from gymnasium import spaces
from gymnasium.envs.toy_text import taxi

from envs.games.gymnasium import Gymnasium
from envs.registry import make_environment
from tests.fixtures.games import play_moves


def test_actions_named_by_the_user_are_those_that_are_executed():
    lake = Gymnasium(arguments=["is_slippery=false"], actions=["West", "South", "East", "North"])
    episode = lake.start("train", 0)
    said = lake.parse("<think>I go.</think><action>East</action>", episode.observation.admissible)
    assert said.valid and "S[F]FF" in episode.step(said.action).observation.text


class TaxiEnv(taxi.TaxiEnv):
    """Taxi that begins in a given state; known by the name of its class, as the game itself."""

    first_state = 0

    def reset(self, *, seed=None, options=None):
        _, info = super().reset(seed=seed)
        self.s = self.first_state
        return self.s, info


def test_every_state_of_the_taxi_looks_different():
    game = TaxiEnv(render_mode="ansi")
    gymnasium.register("TaxiAnywhere-v0", lambda **_: game, disable_env_checker=True)
    environment = Gymnasium("TaxiAnywhere-v0")
    texts = set()
    for state in range(500):
        game.first_state = state
        texts.add(environment.start("train", 0).observation.text)
    assert len(texts) == 500


@pytest.mark.parametrize("id", ["Taxi-v4", "FrozenLake8x8-v1", "CliffWalkingSlippery-v1"])
def test_variants_of_a_game_have_its_names_and_its_task(id: str):
    episode = Gymnasium(id).start("train", 0)
    assert "up" in episode.observation.admissible and not episode.task.startswith("Play ")
    assert "\x1b" not in episode.observation.text


def test_a_frozen_lake_is_crossed():
    steps = play_moves(
        Gymnasium(arguments=["is_slippery=false"]),
        0,
        ["down", "down", "right", "right", "down", "right"],
    )
    assert steps[0][0] == "(Down)\nSFFF\n[F]HFH\nFFFH\nHFFG"
    assert [step[1:] for step in steps] == 5 * [(0.0, False, False)] + [(1.0, True, True)]


def test_a_cliff_is_walked_along_at_a_cost_of_a_point_a_step():
    steps = play_moves(
        Gymnasium("CliffWalking-v1", arguments=["is_slippery=false"]),
        0,
        ["up", *["right"] * 11, "down"],
    )
    assert [step[1:] for step in steps] == 12 * [(-1.0, False, False)] + [(-1.0, True, True)]


def test_falling_through_the_ice_ends_the_game_without_success():
    assert play_moves(Gymnasium(arguments=["is_slippery=false"]), 0, ["down", "right"])[-1][1:] == (
        0.0,
        True,
        False,
    )


def test_a_game_that_ends_with_the_last_turn_is_not_cut_off():
    episode = Gymnasium(arguments=["is_slippery=false"], max_turns=2).start("train", 0)
    assert not episode.step("down").truncated
    last = episode.step("right")
    assert last.done and not last.truncated


def test_a_game_that_gymnasium_cuts_off_is_cut_off():
    episode = Gymnasium(arguments=["is_slippery=false", "max_episode_steps=1"]).start("train", 0)
    last = episode.step("left")
    assert last.done and last.truncated


def test_an_action_that_there_is_not_uses_a_turn_and_changes_nothing():
    episode = Gymnasium(max_turns=2).start("train", 0)
    before = episode.observation
    assert episode.step("fly").observation == before
    assert episode.step("fly").done


def test_the_same_seed_slips_alike():
    assert play_moves(Gymnasium(), 5, ["down"] * 4) == play_moves(Gymnasium(), 5, ["down"] * 4)


def test_what_does_not_draw_itself_is_written_out():
    environment = Gymnasium("Blackjack-v1")
    episode = environment.start("train", 0)
    assert re.fullmatch(
        r"\(.*\d+.*, .*\d+.*, .*\d.*\)", episode.observation.text
    ) and episode.observation.admissible == ("stick", "hit")
    assert episode.step("stick").done


class Echo(gymnasium.Env):
    """Says back what it is told; "please" wins."""

    observation_space = spaces.Text(20, charset=string.printable)
    action_space = spaces.Text(20, charset=string.printable)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return "Say something.", {}

    def step(self, action):
        return action, float(action == "please"), action == "please", False, {}


def test_games_that_read_and_write_text_are_played_as_they_are():
    gymnasium.register("Echo-v0", Echo)
    steps = play_moves(Gymnasium("Echo-v0", task="Say the magic word."), 0, ["now", "please"])
    assert steps == [("now", 0.0, False, False), ("please", 1.0, True, True)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id": "NoSuchGame-v0"}, r"env\.settings\.id: NoSuchGame-v0 cannot be made"),
        ({"id": "Pendulum-v1"}, r"env\.settings\.id: an action of Pendulum-v1 is neither"),
        ({"arguments": ["slippery"]}, r"env\.settings\.arguments: 'slippery' is not of the form"),
        ({"arguments": ["colour=red"]}, r"env\.settings\.id: FrozenLake-v1 cannot be made.*colour"),
        (
            {"arguments": ["map_name=null"]},
            r"env\.settings\.arguments: FrozenLake-v1 begins differently each time with the same "
            r"seed",
        ),
        (
            {"actions": ["left", "right"]},
            r"env\.settings\.actions: FrozenLake-v1 has 4 actions, and 2",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Gymnasium(**settings)


class Held(gymnasium.Env):
    """Counts how many of its kind are open."""

    action_space = spaces.Discrete(2)
    observation_space = spaces.Text(100)
    open = 0

    def __init__(self) -> None:
        Held.open += 1

    def reset(self, *, seed=None, options=None):
        return "a door", {}

    def step(self, action):
        return "a door", 0.0, False, False, {}

    def close(self):
        Held.open -= 1


def test_gymnasium_games_are_closed_whether_or_not_they_were_played_to_their_end():
    gymnasium.register("Held-v0", entry_point=Held, disable_env_checker=True)
    environment = make_environment("gymnasium", id="Held-v0", max_turns=2)
    assert Held.open == 0, "those that it is tried out with"
    left = environment.start("train", 0, 5)
    ended = environment.start("train", 1, 6)
    ended.step("0"), ended.step("1")
    left.close(), ended.close()
    assert Held.open == 0
