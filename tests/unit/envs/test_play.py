"""Experts of all environments: they win, say what they do, and know no more than the agent."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from envs.base import Observation
from envs.play import play_expert_episode
from envs.user_errors import UserCodeError
from envs.view import AgentView
from tests.fixtures.environments import ENVIRONMENTS, shared_environment
from tests.fixtures.episodes import OneStep, end_step

of_each = pytest.mark.parametrize("name", ENVIRONMENTS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count", "share"),
    [
        ("alfworld", 300, 0.98),
        ("alfworld, real rooms", 120, 0.95),
        ("webshop", 100, 0.95),
        ("search", 200, 0.9),
    ],
)
def test_an_expert_wins_held_out_tasks_of_each_type(name: str, count: int, share: float) -> None:
    tasks = Counter()
    won = Counter()
    for index in range(count):
        rng = random.Random(index)
        played = play_expert_episode(shared_environment(name), "held_out", index, rng)
        tasks[played.task_type] += 1
        won[played.task_type] += played.success
    assert min(won[task_type] / tasks[task_type] for task_type in tasks) >= share


@of_each
def test_the_same_seed_gives_the_same_demonstration(name: str) -> None:
    environment = shared_environment(name)
    first, second = (
        play_expert_episode(environment, "train", 7, random.Random(1)) for _ in range(2)
    )
    assert first == second


@of_each
def test_other_seeds_give_other_words(name: str) -> None:
    environment = shared_environment(name)
    said = {
        play_expert_episode(environment, "train", 7, random.Random(seed)).turns[0][1]
        for seed in range(20)
    }
    assert len(said) > 1


@of_each
def test_responses_of_an_expert_are_valid_even_where_turns_are_wasted(name: str) -> None:
    environment = shared_environment(name)
    for index in range(60):
        rng = random.Random(index)
        episode = environment.start("train", index)
        view = environment.view(episode)
        expert = environment.expert(episode, rng)
        done = False
        while not done:
            thought, action = expert.waste_turn(view) if rng.random() < 0.3 else expert.act(view)
            response = environment.format_response(thought, action)
            parsed = environment.parse(response, view.observation.admissible)
            assert (parsed.action, parsed.valid) == (action, True)
            result = episode.step(action)
            view.record(action, result.observation)
            done = result.done


@pytest.mark.slow
@of_each
def test_thoughts_and_actions_of_an_expert_are_short(name: str) -> None:
    environment = shared_environment(name)
    responses = [
        response
        for index in range(100)
        for _, response in play_expert_episode(
            environment, "train", index, random.Random(index)
        ).turns
    ]
    assert max(len(response.partition("</think>")[0].split()) for response in responses) <= 16
    assert max(len(response.split()) for response in responses) <= 30


@pytest.mark.slow
@of_each
def test_an_expert_decides_by_the_view_alone(name: str) -> None:
    """Its action on a turn is that of an expert which is asked then for the first time."""
    environment = shared_environment(name)
    rng = random.Random(0)
    rng.random = lambda: 1.0  # no detours
    for index in range(60):
        episode = environment.start("train", index)
        view = environment.view(episode)
        expert = environment.expert(episode, rng)
        done = False
        while not done:
            _, action = expert.act(view)
            assert action == environment.expert(episode, rng).act(view)[1]
            result = episode.step(action)
            view.record(action, result.observation)
            done = result.done


@pytest.mark.parametrize("name", ["alfworld", "webshop"])
def test_an_expert_refuses_a_view_without_the_memory(name: str) -> None:
    environment = shared_environment(name)
    episode = environment.start("train", 0)
    expert = environment.expert(episode, random.Random(0))
    with pytest.raises(TypeError, match=r"environment\.view"):
        expert.act(AgentView(episode.task, episode.observation, history=2))


class Demonstrated(OneStep):
    """An expert says `response` in it; it notes how often it is closed."""

    def __init__(self, step=end_step, response: str = "response") -> None:
        super().__init__(step)
        self.closed = 0
        self._response = response

    def view(self, episode):
        return AgentView(self.task, Observation("text", ("look",)), history=1)

    def expert(self, episode, rng):
        return self

    def act(self, view):
        return "thought", "look"

    def format_response(self, thought: str, action: str) -> str:
        return self._response

    def close(self) -> None:
        self.closed += 1


def test_a_demonstration_is_closed_when_it_is_won() -> None:
    environment = Demonstrated()
    assert play_expert_episode(environment, "train", 0, random.Random(0)).success
    assert environment.closed == 1


def fail_to_step():
    raise KeyError("x")


@pytest.mark.parametrize(
    ("environment", "error"),
    [
        (Demonstrated(fail_to_step), KeyError),
        (Demonstrated(response="\udce9"), UserCodeError),
        (Demonstrated(response=None), UserCodeError),
    ],
    ids=["step fails", "no valid text", "no text"],
)
def test_a_demonstration_that_fails_is_an_error_and_closed(environment, error) -> None:
    """So it is left out of the warm start, and no text of it reaches the tokenizer."""
    with pytest.raises(error):
        play_expert_episode(environment, "train", 0, random.Random(0))
    assert environment.closed == 1
