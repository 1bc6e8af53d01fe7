"""What all environments do alike, as the protocol has it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from functools import cache

import pytest

from envs.alfworld.engine import Engine
from envs.alfworld.environment import AlfWorld
from envs.registry import make_environment
from envs.search.facts import load_passages
from envs.search.questions import generate_questions
from envs.webshop.environment import load_world
from envs.webshop.generate import generate
from protocol.lifetime import dying_with_parent
from tests.fixtures import ROOT
from tests.fixtures.environments import ENVIRONMENTS, shared_environment

of_each = pytest.mark.parametrize("name", ENVIRONMENTS)


def alfworld_lines() -> Iterable[str]:
    for environment in (AlfWorld(), AlfWorld("real")):
        for index in range(12):
            engine = Engine(environment.game("train", index))
            yield engine.opening()
            yield from engine.admissible()
            yield from (item.id for item in engine.game.items)


def webshop_lines() -> Iterable[str]:
    files, held_out = generate()
    yield repr(files.products)
    yield repr(sorted(held_out))
    for kinds in load_world("").goals.values():
        for goals in kinds.values():
            yield from (f"{goal.instruction} {goal.product.price}" for goal in goals)


def search_lines() -> Iterable[str]:
    for questions in generate_questions().values():
        yield from map(str, questions)
    yield from load_passages()


LINES = {"alfworld": alfworld_lines, "webshop": webshop_lines, "search": search_lines}
"""Name of an environment -> all that its tasks are made of, as lines."""


@cache
def compute_digests() -> dict[str, str]:
    return {
        name: hashlib.sha256("\n".join(lines()).encode()).hexdigest()
        for name, lines in LINES.items()
    }


@pytest.fixture(scope="module")
def digests_elsewhere() -> list[dict[str, str]]:
    """Digests as two other processes compute them, whose hashes of texts differ."""
    code = "import json, tests.unit.envs.test_base as t; print(json.dumps(t.compute_digests()))"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            preexec_fn=dying_with_parent(),
        )
        for seed in "12"
    ]
    return [json.loads(process.communicate()[0]) for process in processes]


@pytest.mark.slow
@pytest.mark.parametrize("name", LINES)
def test_tasks_of_an_environment_are_the_same_in_every_process(
    name: str, digests_elsewhere: list[dict[str, str]]
) -> None:
    first, second = (digests[name] for digests in digests_elsewhere)
    assert first == second == compute_digests()[name]


@of_each
def test_an_episode_ends_unsolved_when_its_turns_are_used_up(name: str) -> None:
    environment = shared_environment(name)
    episode = environment.start("train", 0)
    results = [episode.step(ENVIRONMENTS[name].idle_action) for _ in range(environment.max_turns)]
    assert [result.done for result in results] == [False] * (environment.max_turns - 1) + [True]
    assert (results[-1].success, results[-1].reward) == (False, 0.0)
    assert [result.truncated for result in results] == [result.done for result in results]
    with pytest.raises(RuntimeError, match="over"):
        episode.step(ENVIRONMENTS[name].idle_action)


@of_each
def test_the_number_of_turns_can_be_set(name: str) -> None:
    played = ENVIRONMENTS[name]
    environment = make_environment(played.name, **played.settings, max_turns=2)
    episode = environment.start("train", 0)
    assert environment.max_turns == 2
    assert [episode.step(played.idle_action).done for _ in range(2)] == [False, True]


@of_each
def test_an_index_outside_the_split_is_an_error_that_says_which_there_are(name: str) -> None:
    environment = shared_environment(name)
    size = environment.size("held_out")
    for index in (-1, size):
        with pytest.raises(IndexError, match=f"0 to {size - 1}"):
            environment.start("held_out", index)


@of_each
def test_the_prompt_does_not_change_the_view(name: str) -> None:
    environment = shared_environment(name)
    episode = environment.start("train", 0)
    view = environment.view(episode)
    view.record(
        ENVIRONMENTS[name].idle_action, episode.step(ENVIRONMENTS[name].idle_action).observation
    )
    assert environment.prompt(view) == environment.prompt(view)
