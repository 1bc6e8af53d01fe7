"""The environment that docs/environments.md walks through works as it stands there."""

import random
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from config import resolve
from envs import registry
from envs.play import expert_episode

DOCUMENT = (Path(__file__).parent.parent / "docs" / "environments.md").read_text()


@pytest.fixture
def bisection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installed by the entry point of the document, and made with the settings of a run."""
    code = re.search(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)[1]
    name, value = re.search(r'```toml\n.*\n(\w+) = "(.*)"', DOCUMENT).groups()
    (tmp_path / "bisect_game.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bisect_game", raising=False)
    monkeypatch.setattr(registry, "entry_points", lambda **_: [EntryPoint(name, value, registry.ENTRY_POINT_GROUP)])
    config = resolve(overrides={"env": "bisection", "env.history": "3"})
    return registry.make_environment(config.env.name, **config.environment_settings())


def test_its_expert_wins_within_its_turns(bisection):
    episodes = [expert_episode(bisection, "held_out", i, random.Random(i)) for i in range(40)]
    assert all(episode.success and len(episode.turns) <= 4 for episode in episodes)


def test_settings_of_the_run_reach_it(bisection):
    assert bisection.history == 3 and bisection.max_turns == 4


def test_its_actions_are_read_from_responses(bisection):
    assert bisection.parse("<think>It is from 1 to 15.</think><action>8</action>", ()).action == "8"
