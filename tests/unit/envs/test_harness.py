"""Harnesses are found, and refused where a part is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from envs.conversation import is_conversation
from envs.harness import DEFAULT_MAX_TURNS, is_harness
from envs.registry import make_environment

CODE = """
class Agent:
    name = "agent"

    def size(self, split):
        return 3

    def task(self, split, index):
        return index

    async def episode(self, task, client):
        return 1.0
"""


def make(directory: Path, code: str = CODE, **settings: Any) -> Any:
    file = directory / "agent.py"
    file.write_text(code)
    return make_environment(str(file), **settings)


def test_harness_is_found_in_its_file(tmp_path: Path) -> None:
    harness = make(tmp_path)
    assert is_harness(harness)
    assert not is_conversation(harness)
    assert harness.max_turns == DEFAULT_MAX_TURNS


def test_harness_may_have_tools_of_its_own(tmp_path: Path) -> None:
    assert is_harness(make(tmp_path, CODE.replace("def size", "tools = ()\n\n    def size")))


def test_harness_gets_the_turns_of_the_settings(tmp_path: Path) -> None:
    assert make(tmp_path, max_turns=7).max_turns == 7


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("async def", "def", "async def episode"),
        ('name = "agent"', 'name, max_turns = "agent", 0', "max_turns: a whole number"),
        ('name = "agent"', "name = 3", "name: a text"),
        ("def task", "def tasks", "tasks meant to be it"),
        ("async def episode", "async def play", "has no episode"),
    ],
)
def test_harness_that_lacks_a_part_is_refused(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        make(tmp_path, CODE.replace(old, new))


def test_harness_takes_no_history(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"env\.history"):
        make(tmp_path, history=2)
