"""ALFWorld's own games, read from its files.

Ours are written and read again, and, where they are at hand, the real ones.
"""

import dataclasses
import itertools
import json
import random
from pathlib import Path

import pytest

from config import ConfigError
from config.resolve import resolve
from envs.alfworld.environment import AlfWorld
from envs.alfworld.files import find_games, parse_problem, read_game
from envs.alfworld.game import TASK_TYPES, Game, word_task
from envs.alfworld.pddl import format_problem
from envs.base import EnvironmentFailure
from envs.play import play_expert_episode
from supervisor.job import check_tasks, first_task
from tests.fixtures.alfworld import real_data  # noqa: F401

GENERATED = AlfWorld("real")


def write_game(folder: Path, name: str, game: Game, **changes: object) -> Path:
    """Write a file as alfworld-download leaves it.

    `changes` to its fields; None for one that is missing.
    """
    file = folder / name / "trial_1" / "game.tw-pddl"
    file.parent.mkdir(parents=True)
    content = {"pddl_problem": format_problem(game), "solvable": True} | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return file


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six games in each split."""
    for place, (folder, split) in enumerate(
        (("train", "train"), ("valid_seen", "train"), ("valid_unseen", "held_out"))
    ):
        for index, task_type in enumerate(TASK_TYPES):
            write_game(
                tmp_path / "json_2.1.1" / folder,
                f"{task_type}-{index}",
                GENERATED.game(split, 6 * place + index),
            )
    return tmp_path


@pytest.mark.parametrize("index", range(2 * len(TASK_TYPES)))
def test_a_game_that_was_written_is_read_as_it_was(index):
    game = GENERATED.game("train", index)
    read = parse_problem(format_problem(game), game.goal.task_type, random.Random(0))

    def comparable(game: Game) -> Game:
        places = {r.kind for r in game.receptacles}
        return dataclasses.replace(
            game,
            task="",
            receptacles=tuple(sorted(game.receptacles, key=str)),
            items=tuple(sorted(game.items, key=lambda item: item.id)),
            contains={
                kind: set(things)
                for kind, things in game.contains.items()
                if things and kind in places
            },
        )

    assert comparable(read) == comparable(game)


def test_the_variable_that_alfworld_documents_stands_in_for_the_setting(data, monkeypatch):
    monkeypatch.setenv("ALFWORLD_DATA", str(data))
    assert resolve().env.settings["data"] == str(data)
    assert resolve(overrides={"env.settings.data": ""}).env.settings["data"] == ""
    assert "data" not in resolve(overrides={"env.name": "search"}).env.settings


def test_training_without_games_to_train_on_is_refused(data):
    (data / "json_2.1.1" / "train").rename(data / "elsewhere")
    environment = AlfWorld(data=str(data))
    with pytest.raises(ConfigError, match=r"run\.max_updates: alfworld has no tasks to train on"):
        check_tasks(resolve(overrides={"run.max_updates": "1"}), environment)
    check_tasks(
        resolve(overrides={"run.max_updates": "0", "warm_start.episodes": "0"}), environment
    )


def test_the_environment_plays_the_games_of_its_data(data):
    environment = AlfWorld(data=str(data))
    assert (environment.size("train"), environment.size("held_out"), environment.max_turns) == (
        6,
        6,
        50,
    )
    assert {environment.start("train", index).task_type for index in range(6)} == set(TASK_TYPES)
    assert all(
        play_expert_episode(environment, "held_out", index, random.Random(0)).success
        for index in range(6)
    )


def test_the_games_are_in_the_same_order_wherever_they_lie_and_in_the_same_words(
    data, tmp_path_factory
):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "moved"
    (data / "json_2.1.1").rename(elsewhere)
    moved = AlfWorld(data=str(elsewhere))
    tasks = [moved.start("train", index).task for index in range(6)]
    elsewhere.rename(data / "json_2.1.1")
    assert tasks == [AlfWorld(data=str(data)).start("train", index).task for index in range(6)]


def test_valid_seen_can_be_held_out_instead(data):
    seen, unseen = (
        AlfWorld(data=str(data), held_out=folder) for folder in ("valid_seen", "valid_unseen")
    )
    assert [seen.game("train", i) for i in range(6)] == [unseen.game("train", i) for i in range(6)]
    assert [seen.game("held_out", i) for i in range(6)] != [
        unseen.game("held_out", i) for i in range(6)
    ]


def test_only_the_named_task_types_are_played(data):
    environment = AlfWorld(data=str(data), task_types=["look_at_obj_in_light"])
    assert (
        environment.size("train") == 1
        and environment.start("train", 0).task_type == "look_at_obj_in_light"
    )


def test_what_alfworld_leaves_out_is_left_out(tmp_path):
    game = GENERATED.game("train", 0)
    kept = write_game(tmp_path, "pick_and_place_simple-Mug-None-Desk-1", game)
    write_game(tmp_path, "pick_and_place_simple-AppleSliced-None-Desk-1", game)
    write_game(tmp_path, "pick_and_place_with_movable_recep-Mug-Bowl-Desk-1", game)
    write_game(tmp_path, "pick_and_place_simple-Mug-None-Desk-2", game, solvable=False)
    write_game(tmp_path, "pick_and_place_simple-Mug-None-Desk-3", game, solvable=None)
    assert find_games(tmp_path) == [kept]


def test_a_directory_without_games_is_refused(data):
    with pytest.raises(
        ValueError,
        match=(
            r"env\.settings\.data \(or ALFWORLD_DATA\): "
            r"there is no directory .*nowhere.valid_unseen"
        ),
    ):
        AlfWorld(data=str(data / "nowhere"))
    (data / "empty" / "valid_unseen").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"ALFWORLD_DATA\): .*valid_unseen has no games"):
        AlfWorld(data=str(data / "empty"))


def test_games_to_train_on_are_not_needed_to_evaluate(data):
    (data / "json_2.1.1" / "train").rename(data / "elsewhere")
    environment = AlfWorld(data=str(data))
    assert (environment.size("train"), environment.size("held_out")) == (0, 6)
    with first_task(environment) as episode:
        assert episode.task == environment.start("held_out", 0).task


@pytest.mark.parametrize(
    ("grammar", "task"),
    [
        ('{"rhs": "Your task is to: Warm up a mug, please."}', "Warm up a mug, please"),
        ('"Your task is to: put some mug on desk"', "put some mug on desk"),
    ],
)
def test_the_task_is_asked_in_the_words_of_the_file(tmp_path, grammar: str, task: str):
    file = write_game(
        tmp_path,
        "pick_and_place_simple-Mug-None-Desk-1",
        GENERATED.game("train", 0),
        grammar=grammar,
    )
    assert read_game(file).task == task


@pytest.mark.parametrize("grammar", [None, 3, "", '{"rhs": "Your task is to: UNKNOWN GOAL."}'])
def test_a_file_without_words_for_the_task_gets_those_of_a_template(tmp_path, grammar: object):
    game = GENERATED.game("train", 0)
    file = write_game(tmp_path, "pick_and_place_simple-Mug-None-Desk-1", game, grammar=grammar)
    assert read_game(file).task in {word_task(game.goal, random.Random(seed)) for seed in range(20)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"solvable": ', "cannot be read"),
        ("[]", "holds no JSON object"),
        ('{"solvable": true}', "the field 'pddl_problem' is missing or no str"),
        ('{"solvable": true, "pddl_problem": 3}', "the field 'pddl_problem' is missing or no str"),
    ],
)
def test_a_malformed_file_is_refused_by_file_and_field(data, text: str, message: str):
    next((data / "json_2.1.1" / "train").glob("*/*/game.tw-pddl")).write_text(text)
    with pytest.raises(
        ValueError, match=rf"env\.settings\.data: .*train.*game\.tw-pddl:? {message}"
    ):
        AlfWorld(data=str(data))


@pytest.mark.parametrize(
    "text", ["", "(:init", "(:init (a b)) (:goal)", "(:init (objectType)) (:goal (x))"]
)
def test_a_problem_that_makes_no_sense_is_a_failure_of_the_environment(tmp_path, text: str):
    file = write_game(
        tmp_path, "look_at_obj_in_light-x", GENERATED.game("train", 0), pddl_problem=text
    )
    with pytest.raises(EnvironmentFailure, match=r"game\.tw-pddl: pddl_problem"):
        read_game(file)


# --- the real ones


@pytest.mark.slow
def test_the_expert_wins_the_real_games(real_data):  # noqa: F811
    environment = AlfWorld(data=str(real_data))
    won = [
        play_expert_episode(environment, "held_out", index, random.Random(index)).success
        for index in range(environment.size("held_out"))
    ]
    assert len(won) == 200 and sum(won) >= 190


@pytest.mark.slow
def test_the_real_games_ask_in_the_words_of_their_files(real_data):  # noqa: F811
    files = find_games(real_data / "json_2.1.1" / "train")
    grammars = [json.loads(file.read_bytes())["grammar"] for file in files]
    assert all(
        f"Your task is to: {read_game(file).task}." in grammar
        for file, grammar in zip(files, grammars, strict=True)
    )


@pytest.mark.slow
def test_the_expert_goes_on_with_whatever_it_holds_in_the_real_games(real_data):  # noqa: F811
    """Some of these things fit nowhere, so that they cannot be put down again."""
    environment = AlfWorld(data=str(real_data))
    for index, kind in itertools.product(
        range(environment.size("train")), ("papertowelroll", "teddybear")
    ):
        hold_and_go_on(environment, index, kind)


def hold_and_go_on(environment: AlfWorld, index: int, kind: str) -> None:
    """Take the first thing of a kind that there is, and leave the rest to the expert."""
    episode = environment.start("train", index)
    view = environment.view(episode)
    expert = environment.expert(episode, random.Random(index))

    def act(action: str) -> bool:
        assert action in view.observation.admissible
        result = episode.step(action)
        view.record(action, result.observation)
        return result.done

    for place in view.memory.places:
        for action in (f"go to {place}", f"open {place}"):
            if action in view.observation.admissible and act(action):
                return
        take = next((a for a in view.observation.admissible if a.startswith(f"take {kind} ")), "")
        if take:
            if act(take):
                return
            break
    while not act(expert.act(view)[1]):
        pass
