"""An environment of user code that goes wrong while a file says so, for `benchmarks.chaos`.

MISFORTUNES names a directory. While there is a file in it called

    surrogates   observations are text that is no UTF-8
    slow prompt  a prompt takes longer than actor.step_timeout
    exit         a step raises SystemExit
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from benchmarks.load_environment import Waiting, Waits
from envs.base import Observation, Split, StepResult
from envs.view import AgentView

NAME = "benchmark-chaos"
MISFORTUNES = "MISFORTUNES"
"""Variable of the process's environment that names the directory of the files."""
STEP_TIMEOUT_SECONDS = 2.0
"""Value that the benchmark gives to actor.step_timeout."""


def befalls(misfortune: str) -> bool:
    """Tell whether the file of that name is there."""
    return Path(os.environ[MISFORTUNES], misfortune).exists()


class UnluckyEpisode:
    """An episode of `Waits` that goes wrong while a file says so."""

    def __init__(self, episode: Waiting) -> None:
        self._episode = episode
        self.task = episode.task
        self.task_type = episode.task_type
        self.scores = episode.scores

    @property
    def observation(self) -> Observation:
        return self._episode.observation

    def step(self, action: str) -> StepResult:
        if befalls("exit"):
            raise SystemExit(3)
        result = self._episode.step(action)
        if not befalls("surrogates"):
            return result
        return StepResult(
            Observation("\ud800", ()), result.reward, result.done, result.success, result.truncated
        )

    def state_key(self) -> str:
        return "\udfff" if befalls("surrogates") else self._episode.state_key()


class Unlucky(Waits):
    """See the module."""

    name = NAME

    def start(self, split: Split, index: int, seed: int) -> UnluckyEpisode:
        return UnluckyEpisode(super().start(split, index, seed))

    def prompt(self, view: AgentView) -> str:
        if befalls("slow prompt"):
            time.sleep(STEP_TIMEOUT_SECONDS + 1)
        return super().prompt(view)
