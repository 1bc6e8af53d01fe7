"""Games of other libraries behind our interface: TextArena's and Gymnasium's.

One of each is played to its end.
"""

from __future__ import annotations

import random
import re
import string
import threading
from collections.abc import Iterator

import gymnasium
import pytest
import textarena
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from textarena.envs.registration import ENV_REGISTRY

from envs.base import Environment, ParsedAction
from envs.games.ansi import ansi_to_text
from envs.games.gymnasium import Gymnasium
from envs.games.textarena import TextArena
from envs.registry import make_environment


def played(
    environment: Environment, index: int, actions: list[str]
) -> list[tuple[str, float, bool, bool]]:
    """(text, reward, done, success) of each step, until the game is over or the actions are."""
    episode = environment.start("train", index)
    steps = []
    for action in actions:
        result = episode.step(action)
        steps.append((result.observation.text, result.reward, result.done, result.success))
        if result.done:
            break
    return steps


# --- both


@pytest.fixture(params=["textarena", "gymnasium"])
def environment(request) -> Environment:
    return make_environment(request.param)


def test_a_task_is_a_seed_that_no_other_task_of_either_split_has(environment):
    seeds = []
    environment.start_with = seeds.append
    tasks = [
        (split, index)
        for split in ("train", "held_out")
        for index in range(environment.size(split))
    ]
    for split, index in tasks:
        environment.start(split, index)
    assert len(set(seeds)) == len(tasks)
    environment.start(*tasks[0])
    assert seeds[-1] == seeds[0]
    with pytest.raises(IndexError, match="held_out has tasks 0 to 999, not 1000"):
        environment.start("held_out", 1000)


@pytest.mark.parametrize(
    ("name", "moves"), [("textarena", ["1", "2", "3"]), ("gymnasium", ["left", "left", "left"])]
)
def test_an_episode_ends_when_its_turns_are_used_up_and_is_over_then(name: str, moves: list[str]):
    assert not played(make_environment(name), 0, moves)[-1][2], "the game itself goes on"
    episode = make_environment(name, max_turns=2).start("train", 0)
    assert not episode.step(moves[0]).done
    last = episode.step(moves[1])
    assert last.done and last.truncated and not last.success and last.reward == 0
    with pytest.raises(RuntimeError, match="over"):
        episode.step(moves[2])


def test_the_prompt_has_the_rules_the_past_and_what_can_be_done():
    lake = Gymnasium(arguments=["is_slippery=false"])
    episode = lake.start("train", 0)
    view = lake.view(episode)
    view.record("right", episode.step("right").observation)
    assert lake.prompt(view).splitlines() == [
        episode.task,
        "[S]FFF",
        "FHFH",
        "FFFH",
        "HFFG",
        "Step 1: right",
        "(Right)",
        "S[F]FF",
        "FHFH",
        "FFFH",
        "HFFG",
        "Actions: left; down; right; up",
        "Step 2: Answer with <think>your reasoning</think><action>one of the actions</action>",
    ]


def test_a_free_action_keeps_its_case_and_a_listed_one_is_matched_in_any(environment):
    said = environment.parse("<think>I move.</think> <action> B2 up </action>", ())
    assert (said.action, said.valid) == ("B2 up", True)
    assert not environment.parse("<think>I move.</think><action></action>", ()).valid
    assert not environment.parse(
        "<think>I move.</think><action>jump</action>", ("left", "right")
    ).valid
    assert environment.parse(
        environment.format_response("I move.", "left"), ("left", "right")
    ).valid
    assert environment.parse(
        "<think>I move.</think><action>LEFT</action>", ("left", "right")
    ) == ParsedAction("left", True)


def test_actions_named_by_the_user_are_those_that_are_executed():
    lake = Gymnasium(arguments=["is_slippery=false"], actions=["West", "South", "East", "North"])
    episode = lake.start("train", 0)
    said = lake.parse("<think>I go.</think><action>East</action>", episode.observation.admissible)
    assert said.valid and "S[F]FF" in episode.step(said.action).observation.text


# --- Colors


@pytest.mark.parametrize(
    ("drawn", "read"),
    [
        ("plain", "plain"),
        ("\x1b[41mS\x1b[0mF", "[on red S]F"),
        ("\x1b[34;1m\x1b[43mR\x1b[0m\x1b[0m|", "[blue bold on yellow R]|"),
        ("\x1b[31ma\x1b[32mb\x1b[39mc", "[red a][green b]c"),
        ("\x1b[1;31ma\x1b[22mb\x1b[mc", "[bold red a][red b]c"),
        ("\x1b[38;5;196ma\x1b[48;2;1;2;3mb\x1b[0m", "[38;5;196 a][38;5;196 48;2;1;2;3 b]"),
        ("\x1b[2J\x1b[H\x1b]0;title\x07\x1b(Bx", "x"),
    ],
)
def test_what_is_shown_by_a_color_is_written(drawn: str, read: str):
    assert ansi_to_text(drawn) == read


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "31", "41", "42", "34;1"]),
            st.text("ab|\n", min_size=1, max_size=3),
        ),
        max_size=6,
    )
)
def test_no_color_is_lost_and_no_letter_changed(stretches):
    drawn = "".join(f"\x1b[{style}m{text}\x1b[0m" if style else text for style, text in stretches)
    marks = {"31": ("(", ")"), "41": ("[", "]"), "42": ("{", "}"), "34": ("<", ">"), "1": ("", "")}
    letters: dict[str, str] = {"": "", "31": "(", "41": "[", "42": "{", "34;1": "<"}
    seen = []
    within = ""
    for char in ansi_to_text(drawn, marks):
        if char in "([{<":
            within = char
        elif char in ")]}>":
            within = ""
        else:
            seen.append((within, char))
    assert seen == [(letters[style], char) for style, text in stretches for char in text]


def test_every_state_of_the_taxi_looks_different():
    env = Gymnasium("Taxi-v4")
    episode = env.start("train", 0)
    texts = set()
    for state in range(500):
        episode._env.unwrapped.s = state
        texts.add(episode._observe(state).text)
    assert len(texts) == 500


@pytest.mark.parametrize("id", ["Taxi-v4", "FrozenLake8x8-v1", "CliffWalkingSlippery-v1"])
def test_variants_of_a_game_have_its_names_and_its_task(id: str):
    episode = Gymnasium(id).start("train", 0)
    assert "up" in episode.observation.admissible and not episode.task.startswith("Play ")
    assert "\x1b" not in episode.observation.text


# --- TextArena


def test_a_number_is_guessed_by_what_textarena_says():
    environment = TextArena("GuessTheNumber-v0")
    episode = environment.start("held_out", 3)
    assert "between 1 and 20" in episode.task and episode.observation.text == ""
    low = 1
    high = 20
    result = None
    while result is None or not result.done:
        result = episode.step(str((low + high) // 2))
        if result.observation.text == "The target number is lower.":
            high = (low + high) // 2 - 1
        if result.observation.text == "The target number is higher.":
            low = (low + high) // 2 + 1
    assert result.success and result.reward == 1 and episode.scores == {"reward": 1.0}
    assert "guessed the correct number" in result.observation.text


def test_a_game_lost_has_the_reward_that_the_game_gives():
    result = played(TextArena("GuessTheNumber-v0"), 0, ["1", "1", "1"])[-1]
    assert result[2] and not result[3] and 0 < result[1] < 1


def test_games_are_the_same_whatever_else_draws_random_numbers_beside_them():
    environment = TextArena("2048-v0")
    moves = ["left", "up", "right", "down"] * 5
    alone = played(environment, 7, moves)
    first = environment.start("train", 7)
    other = environment.start("train", 8)
    beside = []
    for move in moves:
        random.random()
        other.step(move)
        result = first.step(move)
        beside.append((result.observation.text, result.reward, result.done, result.success))
    assert beside == alone != played(environment, 8, moves)


@pytest.mark.parametrize(
    "game", ["Countdown-v0", "Cryptarithm-v0", "Slitherlink-v0", "ThreeCardMonte-v0", "Sudoku-v0"]
)
def test_a_move_against_the_rules_is_told_and_then_punished(game: str):
    steps = played(TextArena(game), 0, ["zzz", "zzz"])
    assert "invalid move" in steps[0][0] and not steps[0][2]
    assert steps[-1][2] and not steps[-1][3] and steps[-1][1] < 1


class Odd(textarena.Env):
    """A game that cannot read letters, and never comes to an end with 0."""

    reached = threading.Event()
    go_on = threading.Event()

    def reset(self, num_players, seed=None):
        self.state = textarena.SinglePlayerState(num_players=num_players, seed=seed)
        self.state.reset(
            game_state={}, player_prompt_function=lambda player_id, game_state: "Say a number."
        )

    def step(self, action):
        number = int(action.strip("[]"))
        if number == 0:
            self.reached.set()
            self.go_on.wait(60)
        return self.state.step()


@pytest.fixture
def odd() -> Iterator[TextArena]:
    Odd.reached.clear()
    Odd.go_on.clear()
    textarena.register(id="Odd-v0-raw", entry_point=Odd)
    yield TextArena("Odd-v0")
    Odd.go_on.set()
    del ENV_REGISTRY["Odd-v0-raw"]


def test_a_move_that_the_game_cannot_read_is_invalid(odd):
    steps = played(odd, 0, ["7", "up", "up"])
    assert "invalid move" in steps[1][0] and steps[2][1:] == (-1.0, True, False)


def test_a_move_that_never_returns_holds_up_no_other_episode(odd):
    stuck = odd.start("train", 0)
    thread = threading.Thread(target=stuck.step, args=("0",))
    thread.start()
    assert Odd.reached.wait(60)
    assert not played(odd, 1, ["7"])[-1][2]
    assert thread.is_alive()
    Odd.go_on.set()
    thread.join(60)
    assert not thread.is_alive()


def test_what_a_game_lacks_is_said_in_words(monkeypatch: pytest.MonkeyPatch):
    def lacking(*_):
        raise LookupError(
            "\n"
            + "*" * 70
            + "\n  Resource \x1b[93mwords\x1b[0m not found.\n  Please use the NLTK Downloader"
        )

    monkeypatch.setattr(TextArena, "start_with", lacking)
    with pytest.raises(
        ValueError, match=r"GuessTheNumber-v0 cannot be played here: Resource words not found\.$"
    ):
        TextArena()


def test_the_random_state_of_the_process_is_left_alone():
    before = random.getstate()
    played(TextArena("2048-v0"), 0, ["left", "up"])
    assert random.getstate() == before


@pytest.mark.parametrize(
    ("game", "message"),
    [("Goh-v0", "has no game 'Goh-v0'"), ("Chess-v0", "Chess-v0 cannot be played here")],
)
def test_a_game_that_cannot_be_played_alone_is_refused(game: str, message: str):
    with pytest.raises(ValueError, match=rf"env\.settings\.game: .*{message}"):
        TextArena(game)


# --- Gymnasium


def test_a_frozen_lake_is_crossed():
    steps = played(
        Gymnasium(arguments=["is_slippery=false"]),
        0,
        ["down", "down", "right", "right", "down", "right"],
    )
    assert steps[0][0] == "(Down)\nSFFF\n[F]HFH\nFFFH\nHFFG"
    assert [step[1:] for step in steps] == 5 * [(0.0, False, False)] + [(1.0, True, True)]


def test_a_cliff_is_walked_along_at_a_cost_of_a_point_a_step():
    steps = played(
        Gymnasium("CliffWalking-v1", arguments=["is_slippery=false"]),
        0,
        ["up", *["right"] * 11, "down"],
    )
    assert [step[1:] for step in steps] == 12 * [(-1.0, False, False)] + [(-1.0, True, True)]


def test_falling_through_the_ice_ends_the_game_without_success():
    assert played(Gymnasium(arguments=["is_slippery=false"]), 0, ["down", "right"])[-1][1:] == (
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
    assert played(Gymnasium(), 5, ["down"] * 4) == played(Gymnasium(), 5, ["down"] * 4)


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
    steps = played(Gymnasium("Echo-v0", task="Say the magic word."), 0, ["now", "please"])
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


# --- what is held open


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


def test_a_textarena_game_is_closed_once_whether_or_not_it_was_played_to_its_end():
    environment = make_environment("textarena")
    for turns in (0, 40):
        episode = environment.start("train", 3)
        closed = []
        close = episode._env.close
        episode._env.close = lambda close=close, closed=closed: (closed.append(1), close())[1]
        for _ in range(turns):
            if episode.step("1").done:
                break
        episode.close()
        assert closed == [1]
