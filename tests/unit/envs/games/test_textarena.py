"""TextArena's games behind our interface."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest
import textarena
from textarena.envs.registration import ENV_REGISTRY

from envs.games.textarena import TextArena
from tests.fixtures.games import play_moves


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
    result = play_moves(TextArena("GuessTheNumber-v0"), 0, ["1", "1", "1"])[-1]
    assert result[2] and not result[3] and 0 < result[1] < 1


def test_games_are_the_same_whatever_else_draws_random_numbers_beside_them():
    environment = TextArena("2048-v0")
    moves = ["left", "up", "right", "down"] * 5
    alone = play_moves(environment, 7, moves)
    first = environment.start("train", 7)
    other = environment.start("train", 8)
    beside = []
    for move in moves:
        random.random()
        other.step(move)
        result = first.step(move)
        beside.append((result.observation.text, result.reward, result.done, result.success))
    assert beside == alone != play_moves(environment, 8, moves)


@pytest.mark.parametrize(
    "game", ["Countdown-v0", "Cryptarithm-v0", "Slitherlink-v0", "ThreeCardMonte-v0", "Sudoku-v0"]
)
def test_a_move_against_the_rules_is_told_and_then_punished(game: str):
    steps = play_moves(TextArena(game), 0, ["zzz", "zzz"])
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
    steps = play_moves(odd, 0, ["7", "up", "up"])
    assert "invalid move" in steps[1][0] and steps[2][1:] == (-1.0, True, False)


def test_a_move_that_never_returns_holds_up_no_other_episode(odd):
    stuck = odd.start("train", 0)
    thread = threading.Thread(target=stuck.step, args=("0",))
    thread.start()
    assert Odd.reached.wait(60)
    assert not play_moves(odd, 1, ["7"])[-1][2]
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
    play_moves(TextArena("2048-v0"), 0, ["left", "up"])
    assert random.getstate() == before


@pytest.mark.parametrize(
    ("game", "message"),
    [("Goh-v0", "has no game 'Goh-v0'"), ("Chess-v0", "Chess-v0 cannot be played here")],
)
def test_a_game_that_cannot_be_played_alone_is_refused(game: str, message: str):
    with pytest.raises(ValueError, match=rf"env\.settings\.game: .*{message}"):
        TextArena(game)


class Counted(textarena.Env):
    """A game that is over with its second move, and counts how often it is closed."""

    closed = 0

    def reset(self, num_players, seed=None):
        self.moves = 0
        self.state = textarena.SinglePlayerState(num_players=num_players, seed=seed)
        self.state.reset(
            game_state={}, player_prompt_function=lambda player_id, game_state: "Move."
        )

    def step(self, action):
        self.moves += 1
        if self.moves == 2:
            self.state.set_outcome(reward=1.0)
        return self.state.step()

    def close(self):
        Counted.closed += 1
        return super().close()


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_textarena_game_is_closed_once_whether_or_not_it_was_played_to_its_end(moves: int):
    textarena.register(id="Counted-v0-raw", entry_point=Counted)
    try:
        episode = TextArena("Counted-v0").start("train", 0)
    finally:
        del ENV_REGISTRY["Counted-v0-raw"]
    before = Counted.closed
    results = [episode.step("go") for _ in range(moves)]
    episode.close()
    assert Counted.closed == before + 1
    assert [result.done for result in results] == [False, True][:moves]
