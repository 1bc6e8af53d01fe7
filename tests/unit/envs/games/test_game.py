"""What games of both libraries do alike."""

from __future__ import annotations

import pytest

from envs.base import Environment, ParsedAction
from envs.games.gymnasium import Gymnasium
from envs.registry import make_environment
from tests.fixtures.games import play_moves


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
    assert not play_moves(make_environment(name), 0, moves)[-1][2], "the game itself goes on"
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
