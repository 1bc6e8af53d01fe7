"""What the controller waits for, in words, since when. Pure: every call gets the time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from controller.admission import Admission
from engine.pool import Health
from protocol.router import display_name
from telemetry.probes.waits import StandingConditions

EPISODES_TOLD = 2
"""How many of the episodes that have been out longest are told of."""


class Situation(NamedTuple):
    """What the controller knows of those it works with."""

    version: int  # of the weights that all engines run; -1 before the first
    published: int  # newest version that the learner has published; -1 before the first
    actors: int  # that live
    engines: Sequence[tuple[str, str, int]]  # address, health and turns of each


class ControllerWaits:
    """Remembers since when the controller has waited for what."""

    def __init__(self) -> None:
        self._conditions = StandingConditions()

    def seconds(self, situation: Situation, admission: Admission, now: float) -> dict[str, float]:
        """Seconds waited for each thing, by its words.

        `now` is of the clock that leases were granted by.
        """
        waits = self._conditions.seconds(conditions_of(situation), now)
        return waits | episode_waits(admission, now)


def conditions_of(situation: Situation) -> dict[str, str]:
    """What keeps episodes from going on, but for the episodes themselves: a name for each condition
    that holds -> words."""
    conditions = {}
    if situation.published < 0:
        conditions["first weights"] = "the first weights of the learner"
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
    for episode in admission.longest_in_flight(now, EPISODES_TOLD):
        actor = display_name(episode.actor)
        lease = f"lease {episode.lease_attempt + 1} of {admission.settings.max_leases}"
        waits[f"episode {episode.key.id} at {actor} ({lease})"] = episode.seconds
    return waits
