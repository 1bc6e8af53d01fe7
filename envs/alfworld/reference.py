"""TextWorld's own engine on our games, to which ours is held.

It needs textworld 1.7.0, fast-downward-textworld and alfworld 0.4.2; nothing at run time imports
this module. To record transcripts for the tests that run without TextWorld:

    python -m envs.alfworld.reference FILE
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from envs.alfworld.environment import AlfWorld
from envs.alfworld.game import TASK_TYPES, Game
from envs.alfworld.pddl import to_tw_pddl
from envs.base import Environment, Split
from envs.play import play_expert_episode
from envs.response import parse_think_action
from protocol.files import atomic_write

_NOT_COMMANDS = ("fly away", "go to cabinet 99", "take mug 1", "Look", "")

RECORDED_STEPS = 30


def missing_packages() -> list[str]:
    """The packages without which `TextWorldGame` does not work; empty if there are all."""
    return [name for name in ("textworld", "fast_downward", "alfworld") if find_spec(name) is None]


class TextWorldGame:
    """A game played by TextWorld, with alfworld's names for things."""

    def __init__(self, game: Game, problem: str = "") -> None:
        """`problem`: the PDDL text of a game that was read, instead of the one we would write."""
        # Looked up by name: only the extra "parity" brings these packages.
        alfworld = import_module("alfworld")
        textworld = import_module("textworld")
        demangler = import_module("alfworld.agents.environment.alfred_tw_env").AlfredDemangler
        pddl_env = import_module("textworld.envs").PddlEnv

        data = Path(str(alfworld.__file__)).parent / "data"
        domain = (data / "alfred.pddl").read_text()
        grammar = (data / "alfred.twl2").read_text()
        content = to_tw_pddl(game, domain, grammar)
        if problem:
            content["pddl_problem"] = problem
        infos = textworld.EnvInfos(won=True, admissible_commands=True, score=True)
        self._environment = demangler(pddl_env(infos), shuffle=False)
        self._environment.load(content)
        self._state = self._environment.reset()
        self.score = 0
        self.done = False

    @property
    def text(self) -> str:
        """The last answer."""
        return str(self._state.feedback)

    @property
    def admissible(self) -> list[str]:
        return list(self._state["admissible_commands"])

    @property
    def won(self) -> bool:
        return bool(self._state["won"])

    def step(self, command: str) -> str:
        """Execute a command and return the answer."""
        self._state, self.score, self.done = self._environment.step(command)
        return self.text


def draw_command(admissible: list[str], rng: random.Random) -> str:
    """A command that explores the rules: every verb about as often, and now and then no command."""
    if rng.random() < 0.08:
        return rng.choice(
            (*_NOT_COMMANDS, admissible[0].upper(), f" {admissible[-1]} ", admissible[0][:-1])
        )
    verbs = {command.split()[0] for command in admissible}
    if rng.random() < 0.8:
        verbs -= {"help", "inventory", "look"}
    verb = rng.choice(sorted(verbs))
    return rng.choice([command for command in admissible if command.split()[0] == verb])


def expert_commands(environment: AlfWorld, split: Split, index: int) -> list[str]:
    """The commands by which the expert plays a game."""
    # The protocol's views are of any episode, AlfWorld's are of its own.
    any_environment = cast("Environment", environment)
    turns = play_expert_episode(any_environment, split, index, random.Random(index)).turns
    return [parse_think_action(response).action for _, response in turns]


def record_transcript(game: Game, commands: list[str], rng: random.Random) -> dict[str, Any]:
    """The game and, step by step, TextWorld's answers and the commands that come and go.

    First come `commands`, then random ones up to `RECORDED_STEPS`.
    """
    original = TextWorldGame(game)
    admissible_before: set[str] = set()
    steps = []
    command = ""
    for number in range(max(RECORDED_STEPS, len(commands)) + 1):
        admissible = set(original.admissible)
        steps.append(
            {
                "command": command,
                "text": original.text,
                "come": sorted(admissible - admissible_before),
                "gone": sorted(admissible_before - admissible),
                "won": original.won,
            }
        )
        admissible_before = admissible
        if number < len(commands):
            command = commands[number]
        else:
            command = draw_command(original.admissible, rng)
        original.step(command)
    fitting = {
        kind: sorted(game.contains[kind])
        for kind in sorted({r.kind for r in game.receptacles} & game.contains.keys())
    }
    fields = dataclasses.asdict(dataclasses.replace(game, contains=fitting))
    return {"game": _to_json(fields), "steps": steps}


def _to_json(value: Any) -> Any:
    """A value for JSON: sets become sorted lists."""
    if isinstance(value, dict):
        return {key: _to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(inner) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted(value)
    return value


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    missing = missing_packages()
    if missing:
        sys.exit(f"install first: {', '.join(missing)}")
    output = Path(sys.argv[1])  # Read now: fast_downward writes its own arguments into sys.argv.
    small = AlfWorld()
    real = AlfWorld("real")
    transcripts = []
    for index in range(len(TASK_TYPES)):
        # Of each type one game that the expert wins first, and one in a real room, not a large one,
        # of random commands only.
        commands = expert_commands(small, "held_out", index)
        small_game = small.game("held_out", index)
        transcripts.append(record_transcript(small_game, commands, random.Random(index)))
        real_games = [
            real.game("held_out", other)
            for other in range(index, 20 * len(TASK_TYPES), len(TASK_TYPES))
        ]
        smallest = min(real_games, key=lambda game: len(game.receptacles))
        transcripts.append(record_transcript(smallest, [], random.Random(index)))
    lines = [json.dumps(transcript, separators=(",", ":")) for transcript in transcripts]
    atomic_write(output, "[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
