"""A run on several machines that something else assigns: what is where, and which settings follow
from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from config import ConfigError

PORT = 5555
"""Of the controller, unless controller.port is given."""
UNLIMITED = "1e6"
"""run.max_minutes, unless it is given: what assigned the machines has limits of its own, and the
default is a laptop's."""
FOLLOW = (
    "run.dir",
    "run.weights_dir",
    "security.keys",
    "controller.host",
    "controller.shards",
    "controller.hosts",
    "controller.launch",
    "learner.launch",
    "learner.host",
)
"""Settings that follow from the machines."""


@dataclass(frozen=True)
class Machines:
    """The first machine has controller and engines, the next `shards` have further shards with
    engines of their own, the next one has the learner (if `learner`), the others have actors."""

    shards: int
    actor_nodes: int
    actors: int
    """On each machine with actors."""
    learner: bool

    @property
    def nodes(self) -> int:
        return 1 + self.shards + self.learner + self.actor_nodes

    @property
    def learner_node(self) -> int:
        """Its place among the machines."""
        return 1 + self.shards if self.learner else 0

    @property
    def first_actors(self) -> int:
        """The place of the first machine with actors."""
        return 1 + self.shards + self.learner


def run_settings(overrides: dict[str, str], machines: Machines) -> dict[str, str]:
    """Settings of the run beside those in FOLLOW, which raise ConfigError."""
    given = next((name for name in overrides if name in FOLLOW), None)
    if given is not None:
        raise ConfigError(f"{given}: it follows from the machines that are assigned; leave it out")
    shards = (
        {"controller.shards": str(1 + machines.shards), "engine.count": str(1 + machines.shards)}
        if machines.shards
        else {}
    )
    return (
        {"controller.port": str(PORT), "actor.count": "0", "run.max_minutes": UNLIMITED}
        | shards
        | overrides
    )


def keys_of(directory: Path) -> Path:
    """Where the keys of the run in `directory` are."""
    return directory.with_name(f"{directory.name}-keys")


def weights_of(directory: Path) -> Path:
    """Where its engines find new weights."""
    return directory.with_name(f"{directory.name}-weights")
