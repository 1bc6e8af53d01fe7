"""TextWorld's own engine on our games: what ours is held to.

Needs textworld 1.7.0, fast-downward-textworld and alfworld 0.4.2; nothing at run time imports this
module.

    python -m envs.alfworld.reference FILE       record transcripts for the tests that run without TextWorld
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from envs.alfworld.environment import AlfWorld
from envs.alfworld.game import TASK_TYPES, Game
from envs.alfworld.pddl import to_tw_pddl
from envs.base import Split
from envs.play import play_expert_episode
from envs.response import parse_think_action
from protocol.files import atomic_write

_NOT_COMMANDS = ("fly away", "go to cabinet 99", "take mug 1", "Look", "")

RECORDED_STEPS = 30


def missing_packages() -> list[str]:
    """What has to be installed before `Original` works; empty if it does."""
    return [name for name in ("textworld", "fast_downward", "alfworld") if find_spec(name) is None]


class Original:
    """A game played by TextWorld, with alfworld's names for things."""

    def __init__(self, game: Game, problem: str = "") -> None:
        """`problem`: the PDDL text of a game that was read, instead of the one that we would
        write."""
        import alfworld
        import textworld
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
        from textworld.envs import PddlEnv

        data = Path(alfworld.__file__).parent / "data"
        wrapped = AlfredDemangler(
            PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True, score=True)),
            shuffle=False,
        )
        content = to_tw_pddl(
            game, (data / "alfred.pddl").read_text(), (data / "alfred.twl2").read_text()
        )
        wrapped.load(content | {"pddl_problem": problem} if problem else content)
        self._environment = wrapped
        self._state = wrapped.reset()
        self.score = 0
        self.done = False

    @property
    def text(self) -> str:
        """The last thing said."""
        return str(self._state.feedback)

    @property
    def admissible(self) -> list[str]:
        return list(self._state["admissible_commands"])

    @property
    def won(self) -> bool:
        return bool(self._state["won"])

    def step(self, command: str) -> str:
        """Execute a command and return what is said."""
        self._state, self.score, self.done = self._environment.step(command)
        return self.text


def wander(admissible: list[str], rng: random.Random) -> str:
    """A command that explores the rules: every verb about as often, and now and then something that
    is no command."""
    if rng.random() < 0.08:
        return rng.choice(
            (*_NOT_COMMANDS, admissible[0].upper(), f" {admissible[-1]} ", admissible[0][:-1])
        )
    idle = {"help", "inventory", "look"}
    verbs = sorted(
        {command.split()[0] for command in admissible} - (idle if rng.random() < 0.8 else set())
    )
    verb = rng.choice(verbs)
    return rng.choice([command for command in admissible if command.split()[0] == verb])


def expert_commands(environment: AlfWorld, split: Split, index: int) -> list[str]:
    """What the expert does in a game."""
    turns = play_expert_episode(environment, split, index, random.Random(index)).turns
    return [parse_think_action(response).action for _, response in turns]


def record(game: Game, commands: list[str], rng: random.Random) -> dict[str, Any]:
    """A transcript: the game and, step by step, what TextWorld says and which commands come and go.

    First `commands`, then wandering up to `RECORDED_STEPS`.
    """
    original = Original(game)
    before: list[str] = []
    steps = []
    command = ""
    for number in range(max(RECORDED_STEPS, len(commands)) + 1):
        now = original.admissible
        come = sorted(set(now) - set(before))
        gone = sorted(set(before) - set(now))
        steps.append(
            {
                "command": command,
                "text": original.text,
                "come": come,
                "gone": gone,
                "won": original.won,
            }
        )
        before = now
        command = commands[number] if number < len(commands) else wander(now, rng)
        original.step(command)
    fitting = {
        kind: sorted(game.contains[kind])
        for kind in sorted({r.kind for r in game.receptacles} & game.contains.keys())
    }
    return {
        "game": _plain(dataclasses.asdict(dataclasses.replace(game, contains=fitting))),
        "steps": steps,
    }


def _plain(value: Any) -> Any:
    """For JSON: sets become sorted lists."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return sorted(value) if isinstance(value, set | frozenset) else value


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if missing := missing_packages():
        sys.exit(f"install first: {', '.join(missing)}")
    output = Path(sys.argv[1])  # Read now: fast_downward writes its own arguments into sys.argv.
    small = AlfWorld()
    real = AlfWorld("real")
    transcripts = []
    for index in range(len(TASK_TYPES)):
        # Of each type one game that the expert wins first, and one in a real room, not a large one,
        # for wandering only.
        commands = expert_commands(small, "held_out", index)
        transcripts.append(record(small.game("held_out", index), commands, random.Random(index)))
        games = [
            real.game("held_out", other)
            for other in range(index, 20 * len(TASK_TYPES), len(TASK_TYPES))
        ]
        transcripts.append(
            record(min(games, key=lambda game: len(game.receptacles)), [], random.Random(index))
        )
    atomic_write(
        output,
        "[\n" + ",\n".join(json.dumps(t, separators=(",", ":")) for t in transcripts) + "\n]\n",
    )


if __name__ == "__main__":
    main()
