"""Our engine against what TextWorld said when it was asked.

This parity holds where TextWorld is not installed.

`python -m envs.alfworld.reference tests/data/alfworld_transcripts.json` records anew.
"""

import json
from typing import Any

import pytest

from envs.alfworld.engine import Engine
from envs.alfworld.game import Game, Goal, Item, Receptacle
from tests.fixtures import ROOT

TRANSCRIPTS = json.loads((ROOT / "tests" / "data" / "alfworld_transcripts.json").read_text())


def read_game(plain: dict[str, Any]) -> Game:
    def item(fields: dict[str, Any]) -> Item:
        sets = {name: frozenset(fields[name]) for name in ("affordances", "state")}
        return Item(**{**fields, **sets})

    return Game(
        plain["task"],
        Goal(**plain["goal"]),
        tuple(Receptacle(**fields) for fields in plain["receptacles"]),
        tuple(item(fields) for fields in plain["items"]),
        plain["start"],
        plain["contains"],
    )


@pytest.mark.parametrize(
    "transcript",
    TRANSCRIPTS,
    ids=[f"{t['game']['goal']['task_type']}-{n}" for n, t in enumerate(TRANSCRIPTS)],
)
def test_a_recorded_game_plays_the_same(transcript):
    engine = Engine(read_game(transcript["game"]))
    admissible: set[str] = set()
    for number, step in enumerate(transcript["steps"]):
        said = engine.step(step["command"]) if number else engine.opening()
        admissible = (admissible | set(step["come"])) - set(step["gone"])
        expected = (number, step["command"], step["text"], sorted(admissible), step["won"])
        assert (number, step["command"], said, engine.admissible(), engine.won()) == expected


def test_every_task_type_is_recorded_twice_and_won_once():
    for task_type in {t["game"]["goal"]["task_type"] for t in TRANSCRIPTS}:
        of_type = [t for t in TRANSCRIPTS if t["game"]["goal"]["task_type"] == task_type]
        assert len(of_type) == 2
        assert any(step["won"] for step in of_type[0]["steps"])
    assert len(TRANSCRIPTS) == 12
