"""Reports of the controller, for the supervisor and for whoever looks.

They are its gauges, and what it waits for, in words, since when.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from config import Config
from controller.admission import Admission
from controller.announcements import Announcements
from controller.dashboard import dashboard_state
from controller.roster import ActorRoster
from controller.shard_registry import EngineStatus, ShardRegistry
from controller.turn_service import TurnService
from engine.pool import Health
from envs.registry import short_name
from protocol.codec import FrameReader
from protocol.router import display_name
from telemetry.probes.clocks import LoopLag
from telemetry.probes.waits import FIRST_WEIGHTS, StandingConditions

MAX_EPISODES = 2
"""How many of the episodes that have been out longest are told of."""


class Situation(NamedTuple):
    """The state of those that the controller works with."""

    version: int  # of the weights that all engines run; -1 before the first
    published: int  # newest version that the learner has published; -1 before the first
    actors: int  # that live
    engines: Sequence[EngineStatus]


class ControllerWaits:
    """Remembers since when the controller has waited for what. Pure: every call gets the time."""

    def __init__(self) -> None:
        self._conditions = StandingConditions()

    def seconds(self, situation: Situation, admission: Admission, now: float) -> dict[str, float]:
        """Seconds waited for each thing, by its words.

        `now` is of the clock that leases were granted by.
        """
        waits = self._conditions.seconds(find_conditions(situation), now)
        return waits | episode_waits(admission, now)


def find_conditions(situation: Situation) -> dict[str, str]:
    """Find what keeps episodes from going on, but for the episodes themselves.

    A name for each condition that holds -> words.
    """
    conditions = {}
    if situation.published < 0:
        conditions["first weights"] = FIRST_WEIGHTS
    elif situation.version < situation.published:
        conditions["weights"] = (
            f"all engines to run weights v{situation.published} (v{situation.version} is in force)"
        )
    if not situation.actors:
        conditions["actors"] = (
            "an actor: none is connected (actor.count, or run.py actor --connect)"
        )
    for url, health, _ in situation.engines:
        if health != Health.HEALTHY:
            conditions[f"engine {url}"] = f"the engine at {url}, which is {health}"
    return conditions


def episode_waits(admission: Admission, now: float) -> dict[str, float]:
    """How long the episodes that have been out longest have been with their actors."""
    waits = {}
    for episode in admission.longest_in_flight(now, MAX_EPISODES):
        actor = display_name(episode.actor)
        lease = f"lease {episode.lease_attempt + 1} of {admission.settings.max_leases}"
        waits[f"episode {episode.key.id} at {actor} ({lease})"] = episode.seconds
    return waits


def describe_job(config: Config) -> str:
    """Describe in a few words what a run trains."""
    return (
        f"{short_name(config.env.name)}, {config.model.name}, {config.learner.algorithm.type}, "
        f"control {config.control.mode}, {config.actor.count} actors"
    )


@dataclass(eq=False)
class ControllerState:
    """Reads what the parts of the controller know; the source of its dashboard."""

    config: Config
    admission: Admission
    turn_service: TurnService
    shards: ShardRegistry
    roster: ActorRoster
    announcements: Announcements
    reader: FrameReader
    decode: Callable[[list[int]], str]  # tokens into text
    lag: LoopLag = field(default_factory=LoopLag)
    _waits: ControllerWaits = field(default_factory=ControllerWaits)
    _last_gauges: dict[str, float | None] = field(default_factory=dict)

    def read_gauges(self) -> dict[str, float | None]:
        """Read the numbers of now, of all shards together; counters are totals since the start."""
        own_gauges = self.turn_service.gauges()
        own_gauges["loop_lag_controller"] = self.lag.read().worst
        own_gauges["bad_frames"] += self.reader.dropped_frames
        admission = self.admission
        gauges: dict[str, float | None] = {
            **self.shards.merge_with(own_gauges),
            **self.turn_service.thresholds(),
            **admission.curriculum.gauges(),
            "queue_leases": len(admission.pending) + len(admission.pending_evaluation),
            "episodes_in_flight": len(admission.leased),
            "queue_weights": len(self.announcements),
            "slots_taken": len(admission.holding),
            "actors": len(self.roster),
        }
        loop_lag = self.roster.take_loop_lag()
        if loop_lag is not None:
            gauges["loop_lag_actors"] = loop_lag
        self._last_gauges = gauges
        return gauges

    def last_gauges(self) -> dict[str, float | None]:
        """The numbers of the last time that they were read."""
        return self._last_gauges

    def waits(self) -> dict[str, float]:
        """Seconds for which the controller has waited for each thing, by its words."""
        newest = self.shards.newest_weights
        published = -1 if newest is None else newest.version
        situation = Situation(
            self.shards.version, published, len(self.roster), self.engine_status()
        )
        return self._waits.seconds(situation, self.admission, time.monotonic())

    def engine_status(self) -> list[EngineStatus]:
        """Status of each engine, of all shards."""
        return [*self.turn_service.engine_status(), *self.shards.engine_status()]

    def dashboard_state(self) -> dict:
        """The state that the dashboard shows, as JSON can hold it."""
        return {
            "version": self.shards.version,
            "about": describe_job(self.config),
            "goal": {
                "updates": self.config.run.max_updates,
                "minutes": self.config.run.max_minutes,
                "evaluate_every": self.config.eval.every,
            },
            "gauges": self._last_gauges,
            **dashboard_state(
                self.turn_service.turns,
                self.turn_service.signals,
                self.engine_status(),
                self.admission,
                self.roster.last_seen,
                self.decode,
            ),
        }

    def set_viewers(self, viewers: int) -> None:
        """Keep what only the dashboard needs while anybody looks at it."""
        self.turn_service.signals.set_viewers(viewers)
