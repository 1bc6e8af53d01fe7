"""The layout of a run on several machines that something else assigns, and its settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from config import ConfigError

CONTROLLER_PORT = 5555
"""The port of the controller, unless controller.port is given."""

NO_LIMIT_MINUTES = "0"
"""run.max_minutes, unless it is given: what assigned the machines has limits of its own."""

ASSIGNED_SETTINGS = (
    "run.dir",
    "run.weights_dir",
    "security.keys",
    "controller.host",
    "cluster.shards",
    "cluster.shard_hosts",
    "cluster.shard_launch",
    "cluster.learner_launch",
    "cluster.learner_machines",
    "learner.host",
)
"""Settings that follow from the machines."""


@dataclass(frozen=True)
class Machines:
    """The machines of a run, in their order.

    The first one has controller and engines, the next `shards` have further shards with engines of
    their own, the next `learner` ones share the learner (0: it is on the first), and the others
    have actors.
    """

    shards: int
    actor_nodes: int
    actors: int
    """Actors on each machine that has some."""
    learner: int

    @property
    def nodes(self) -> int:
        return 1 + self.shards + self.learner + self.actor_nodes

    @property
    def learner_node(self) -> int:
        """The place of the learner's machine, or of the first of them."""
        if not self.learner:
            return 0
        return 1 + self.shards

    @property
    def first_actors(self) -> int:
        """The place of the first machine with actors."""
        return 1 + self.shards + self.learner


def run_settings(overrides: dict[str, str], machines: Machines) -> dict[str, str]:
    """Settings of the run, but for those that follow from the machines.

    Raises ConfigError when one of these is given.
    """
    for name in overrides:
        if name in ASSIGNED_SETTINGS:
            raise ConfigError(
                f"{name}: it follows from the machines that are assigned; leave it out"
            )
    settings = {
        "controller.port": str(CONTROLLER_PORT),
        "actor.count": "0",
        "run.max_minutes": NO_LIMIT_MINUTES,
    }
    if machines.shards:
        shards = str(1 + machines.shards)
        settings |= {"cluster.shards": shards, "engine.count": shards}
    return settings | overrides


def keys_of(directory: Path) -> Path:
    """The directory of the keys of the run in `directory`."""
    return directory.with_name(f"{directory.name}-keys")


def weights_of(directory: Path) -> Path:
    """The directory in which the engines of the run in `directory` find new weights."""
    return directory.with_name(f"{directory.name}-weights")
