"""The shards that take turns beside the controller, as it knows them. No IO, no clock.

A shard is *in force*, and actors are told of it, while it is heard of, has a healthy engine, and
its engines run weights at least as new as those that the controller counts on. New weights count
once the controller's own engines and all shards in force run them. So a token is as new as
invariant 1 wants wherever it was sampled: a shard that fell silent is taken from the actors before
newer weights count, by the same connection over which leases of newer groups come to them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.pool import Health
from protocol.messages import ShardAddress, ShardState
from telemetry.metrics_schema import METRICS


class Silent(NamedTuple):
    """A shard that is not heard of any more."""

    number: int
    seconds: float


@dataclass
class _Entry:
    peer: bytes
    state: ShardState
    heard: float


@dataclass
class ShardRegistry:
    """`places`: of shard 1, 2, ...; `patience`: seconds without a word after which one is lost."""

    places: Sequence[ShardAddress]
    patience: float
    version: int = -1  # that the controller counts on
    _known: dict[int, _Entry] = field(default_factory=dict)
    _past: dict[bytes, Mapping[str, float]] = field(
        default_factory=dict
    )  # the last gauges of those that are not heard of
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def heard(self, peer: bytes, state: ShardState, now: float) -> None:
        """A shard says how it stands. From another process than before, it has begun anew."""
        if state.shard in self._known and self._known[state.shard].peer != peer:
            self._lose(state.shard)
        self._past.pop(peer, None)
        self._known[state.shard] = _Entry(peer, state, now)
        if state.last:
            self._lose(state.shard)
        self._changed.set()

    def silent(self, now: float) -> list[Silent]:
        """Those that are lost from now on."""
        lost = [
            Silent(number, now - entry.heard)
            for number, entry in self._known.items()
            if now - entry.heard > self.patience
        ]
        for number, _ in lost:
            self._lose(number)
        return lost

    def in_force(self) -> list[ShardAddress]:
        """Where turns are taken, beside the controller itself."""
        return [self.places[number - 1] for number in self._in_force()]

    def peers(self) -> list[bytes]:
        """Of all that are heard of."""
        return [entry.peer for entry in self._known.values()]

    async def run(self, version: int) -> float:
        """Until all that are in force now, and stay so, run these weights; the longest time for
        which engines of one stood still."""
        awaited = self._in_force()
        while any(
            self._known[number].state.version < version for number in awaited & self._in_force()
        ):
            self._changed.clear()
            await self._changed.wait()
        return max(
            (self._known[number].state.seconds for number in awaited & self._in_force()),
            default=0.0,
        )

    def standing(self) -> list[tuple[str, str, int]]:
        """Address, health and turns of each engine."""
        return [
            engine for _, entry in sorted(self._known.items()) for engine in entry.state.engines
        ]

    def gauges(self, own: Mapping[str, float]) -> dict[str, float]:
        """Of controller (`own`) and shards together; what those that are gone have counted, too."""
        return together(
            [own, *(entry.state.gauges for entry in self._known.values())], self._past.values()
        )

    def _in_force(self) -> set[int]:
        return {
            number
            for number, entry in self._known.items()
            if entry.state.version >= max(self.version, 0)
            and any(health == Health.HEALTHY for _, health, _ in entry.state.engines)
        }

    def _lose(self, number: int) -> None:
        entry = self._known.pop(number)
        self._past[entry.peer] = entry.state.gauges
        self._changed.set()


def together(
    now: Sequence[Mapping[str, float]], past: Iterable[Mapping[str, float]]
) -> dict[str, float]:
    """Gauges of several processes as those of one, by what telemetry/metrics_schema.py says of
    them: the mean of shares, the worst of peaks, the sum of others; of `past` ones, only what was
    counted."""
    found: dict[str, float] = {}
    for name in now[0]:
        field = METRICS[name]
        values = [gauges.get(name, 0.0) for gauges in now]
        if field.aggregation == "peak":
            found[name] = max(values)
        elif field.unit == "share":
            found[name] = sum(values) / len(values)
        else:
            found[name] = sum(values) + sum(
                gauges.get(name, 0.0) for gauges in past if field.aggregation == "total"
            )
    return found


def place_of(endpoint: str, elsewhere: Sequence[str]) -> ShardAddress:
    """Where actors find the shard that listens at `endpoint` (tcp://host:port): on one of the
    machines `elsewhere`, or on the controller's, which they know already, perhaps by another name.
    """
    host, port = endpoint.removeprefix("tcp://").rsplit(":", 1)
    return ShardAddress(host=host if host in elsewhere else "", port=int(port))
