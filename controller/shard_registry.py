"""The shards that take turns beside the controller, as it knows them. No IO, no clock.

A shard is *in force*, and actors are told of it, while it is heard of, has a healthy engine, and
its engines run weights at least as new as those that the controller counts on. New weights count
once the controller's own engines and all shards in force run them. So a token is as new as
invariant 1 wants wherever it was sampled: a shard that fell silent is taken from the actors before
newer weights count, by the same connection over which leases of newer groups come to them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from config import Job
from engine.pool import Health
from protocol.messages import LoadWeights, ShardAddress, ShardState
from protocol.security import LOST_AFTER
from telemetry.metrics_schema import METRICS

EngineStatus = tuple[str, str, int]
"""Address, health and number of turns of an engine."""


class SilentShard(NamedTuple):
    """A shard that is not heard of any more."""

    number: int
    seconds: float  # since its last word


@dataclass
class _Entry:
    peer: bytes
    state: ShardState
    heard: float


@dataclass
class ShardRegistry:
    """Keeps what the controller knows of its shards."""

    addresses: Sequence[ShardAddress]
    """Addresses at which actors find shard 1, 2, ..."""
    patience: float
    """Seconds without a word after which a shard is lost."""
    version: int = -1
    """Weight version that every engine in force runs; -1 before the first."""
    newest_weights: LoadWeights | None = None
    """The newest weights that the engines are to run, or are loading."""
    _known: dict[int, _Entry] = field(default_factory=dict)
    _past_gauges: dict[bytes, Mapping[str, float]] = field(default_factory=dict)
    """Last gauges of each process that is not heard of any more."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def update(self, peer: bytes, state: ShardState, now: float) -> None:
        """Take what a shard says of itself. From another process than before, it has begun anew."""
        known = self._known.get(state.shard)
        if known is not None and known.peer != peer:
            self._drop(state.shard)
        self._past_gauges.pop(peer, None)
        self._known[state.shard] = _Entry(peer, state, now)
        if state.last:
            self._drop(state.shard)
        self._changed.set()

    def last_heard(self, number: int) -> float:
        """When the shard was heard of last; -inf if it is not known."""
        entry = self._known.get(number)
        if entry is None:
            return -inf
        return entry.heard

    def drop_silent(self, now: float) -> list[SilentShard]:
        """Drop the shards that were silent for too long, and return them."""
        silent = [
            SilentShard(number, now - entry.heard)
            for number, entry in self._known.items()
            if now - entry.heard > self.patience
        ]
        for number, _ in silent:
            self._drop(number)
        return silent

    def addresses_in_force(self) -> list[ShardAddress]:
        """Addresses at which turns are taken, beside the controller's own."""
        return [self.addresses[number - 1] for number in self._in_force()]

    def peers(self) -> list[bytes]:
        """Peers of all shards that are heard of."""
        return [entry.peer for entry in self._known.values()]

    async def await_version(self, version: int) -> float:
        """Wait until all shards that are in force now, and stay so, run these weights.

        Returns the longest time, in seconds, for which engines of one stood still.
        """
        awaited = self._in_force()
        while self._any_behind(awaited, version):
            self._changed.clear()
            await self._changed.wait()
        return max(
            (self._known[number].state.seconds for number in awaited & self._in_force()),
            default=0.0,
        )

    def engine_status(self) -> list[EngineStatus]:
        """Status of each engine of all shards that are heard of."""
        return [
            engine for _, entry in sorted(self._known.items()) for engine in entry.state.engines
        ]

    def merge_with(self, gauges: Mapping[str, float]) -> dict[str, float]:
        """Merge the controller's own gauges with those of all shards.

        What those that are gone have counted stays counted.
        """
        current = [gauges, *(entry.state.gauges for entry in self._known.values())]
        return merge_gauges(current, self._past_gauges.values())

    def _in_force(self) -> set[int]:
        return {
            number
            for number, entry in self._known.items()
            if entry.state.version >= max(self.version, 0)
            and any(health == Health.HEALTHY for _, health, _ in entry.state.engines)
        }

    def _any_behind(self, awaited: set[int], version: int) -> bool:
        return any(
            self._known[number].state.version < version for number in awaited & self._in_force()
        )

    def _drop(self, number: int) -> None:
        entry = self._known.pop(number)
        self._past_gauges[entry.peer] = entry.state.gauges
        self._changed.set()


def build_shard_registry(job: Job) -> ShardRegistry:
    """Make the registry of a job's shards, none of which has been heard of."""
    hosts = job.config.cluster.shard_hosts
    addresses = [shard_address(endpoint, hosts) for endpoint in job.endpoints.turns]
    return ShardRegistry(addresses, LOST_AFTER * job.config.actor.heartbeat_seconds)


def merge_gauges(
    current: Sequence[Mapping[str, float]], past: Collection[Mapping[str, float]]
) -> dict[str, float]:
    """Merge the gauges of several processes, by what telemetry/metrics_schema.py says of them.

    The mean of shares, the worst of peaks, the sum of others; of `past` processes, only what was
    counted.
    """
    merged: dict[str, float] = {}
    for name in current[0]:
        metric = METRICS[name]
        values = [gauges.get(name, 0.0) for gauges in current]
        if metric.aggregation == "peak":
            merged[name] = max(values)
        elif metric.unit == "share":
            merged[name] = sum(values) / len(values)
        else:
            merged[name] = sum(values)
            if metric.aggregation == "total":
                merged[name] += sum(gauges.get(name, 0.0) for gauges in past)
    return merged


def shard_address(endpoint: str, hosts: Sequence[str]) -> ShardAddress:
    """Address at which actors find the shard that listens at `endpoint` (tcp://host:port).

    On one of the machines `hosts`, or on the controller's, which they know already, perhaps by
    another name.
    """
    host, port = endpoint.removeprefix("tcp://").rsplit(":", 1)
    if host not in hosts:
        host = ""
    return ShardAddress(host=host, port=int(port))
