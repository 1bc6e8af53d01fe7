"""A run on several machines that something else assigns: what is where, and which settings follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from config import ConfigError

PORT = 5555
"""Of the controller, unless controller.port is given."""
FOLLOW = ("run.dir", "run.weights_dir", "security.keys", "controller.host", "learner.launch", "learner.host")
"""Settings that follow from the machines."""


@dataclass(frozen=True)
class Machines:
    """The first machine has controller and engines, the second one the learner (if `learner`), the others have actors."""

    actor_nodes: int
    actors: int
    """On each machine with actors."""
    learner: bool

    @property
    def nodes(self) -> int:
        return 1 + self.learner + self.actor_nodes


def run_settings(overrides: dict[str, str]) -> dict[str, str]:
    """Settings of the run beside those in FOLLOW, which raise ConfigError."""
    given = next((name for name in overrides if name in FOLLOW), None)
    if given is not None:
        raise ConfigError(f"{given}: it follows from the machines that are assigned; leave it out")
    return {"controller.port": str(PORT), "actor.count": "0"} | overrides


def keys_of(directory: Path) -> Path:
    """Where the keys of the run in `directory` are."""
    return directory.with_name(f"{directory.name}-keys")


def weights_of(directory: Path) -> Path:
    """Where its engines find new weights."""
    return directory.with_name(f"{directory.name}-weights")
