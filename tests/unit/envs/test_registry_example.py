"""The environment that docs/guides/your-environment.md walks through works as it stands there."""

import random
import sys
from pathlib import Path

import pytest

from config.resolve import resolve
from envs.play import play_expert_episode
from envs.registry import make_environment
from tests.fixtures.example_environment import install_example


@pytest.fixture
def bisection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installed by the entry point of the document, and made with the settings of a run."""
    name = install_example(tmp_path / "installed")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    monkeypatch.delitem(sys.modules, "bisect_game", raising=False)
    config = resolve(overrides={"env": name, "env.history": "3"})
    return make_environment(config.env.name, **config.environment_settings())


def test_its_expert_wins_within_its_turns(bisection):
    episodes = [play_expert_episode(bisection, "held_out", i, random.Random(i)) for i in range(40)]
    assert all(episode.success and len(episode.turns) <= 4 for episode in episodes)


def test_settings_of_the_run_reach_it(bisection):
    assert bisection.history == 3 and bisection.max_turns == 4


def test_its_actions_are_read_from_responses(bisection):
    assert bisection.parse("<think>It is from 1 to 15.</think><action>8</action>", ()).action == "8"
