"""An environment that only takes time: 3 to 7 turns, whatever the agent says.

Each takes `SECONDS`, which its process is told.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import ClassVar

from envs.base import Observation, ParsedAction, Split, StepResult
from envs.response import format_think_action, parse_think_action
from envs.view import AgentView

NAME = "benchmark-load"
SECONDS = "BENCHMARK_STEP_SECONDS"
"""Variable of the process's environment that says how many seconds a turn takes."""
MEAN_TURNS = 5
SHORTEST = 3


class Waiting:
    """One episode."""

    task = "wait"
    task_type = "waiting"
    scores: ClassVar = {}

    def __init__(self, turns: int, seconds: float) -> None:
        self._left = turns
        self._seconds = seconds
        self.observation = Observation(
            f"{turns} turns are left. " + "There is nothing to see here. " * 10, ()
        )

    def step(self, action: str) -> StepResult:
        time.sleep(self._seconds)
        self._left -= 1
        self.observation = Observation(
            f"{self._left} turns are left. " + "There is nothing to see here. " * 10, ()
        )
        over = self._left == 0
        return StepResult(self.observation, float(len(action) % 2), over, over)

    def state_key(self) -> str:
        return str(self._left)


class Waits:
    """See the module."""

    name = NAME

    def __init__(self, max_turns: int = 0) -> None:
        """`max_turns` is what every environment is asked; here episodes are as long as they are."""
        self.max_turns = 2 * MEAN_TURNS - SHORTEST
        self._seconds = float(os.environ.get(SECONDS, "0"))

    def size(self, split: Split) -> int:
        return {"train": 10_000, "held_out": 100}[split]

    def start(self, split: Split, index: int, seed: int = 0) -> Waiting:
        return Waiting(
            random.Random(f"{split} {index}").randint(SHORTEST, self.max_turns), self._seconds
        )

    def view(self, episode: Waiting) -> AgentView:
        return AgentView(episode.task, episode.observation, history=1)

    def prompt(self, view: AgentView) -> str:
        return f"Turn {view.step}. {view.observation.text}"

    def parse(self, response: str, admissible: tuple[str, ...]) -> ParsedAction:
        return parse_think_action(response)

    def format_response(self, thought: str, action: str) -> str:
        return format_think_action(thought, action)

    def expert(self, episode: Waiting, rng: random.Random) -> Patience:
        return Patience()


class Patience:
    """Waits."""

    def act(self, view: AgentView) -> tuple[str, str]:
        return "There is nothing to do.", "wait"

    waste_turn = act


def install(directory: Path, name: str = NAME, factory: str = f"{__name__}:Waits") -> None:
    """Write an entry point of the environment `name`.

    Processes that have `directory` on their path find it there.
    """
    metadata = directory / f"{name.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[foray.environments]\n{name} = {factory}\n")
