"""A shard takes turns for its share of the engines, as the controller does for its own.

It admits nothing and keeps nothing.

              TurnRequest, EpisodeEnded            ShardState
  ┌───────┐ ───────────────────────────▶ ┌───────┐ ─────────────────────────▶ ┌────────────┐
  │ actor │                              │ shard │                            │ controller │
  └───────┘ ◀─────────────────────────── └───────┘ ◀───────────────────────── └────────────┘
              TurnResult, TurnFailed       ▲   │    LoadWeights, Revoked
                               SignalFrame │   │ HTTP, ForceTokens
                                           │   ▼
                                         ┌────────┐
                                         │ engine │  those of this shard alone
                                         └────────┘

  loop               waits for                                    woken by
  ──────────────────────────────────────────────────────────────────────────────────────
  _serve_actors      a frame from any actor                       actors
  _serve_controller  a frame from the controller                  controller
  signals.run        a signal frame                               its engines
  engines.watch      the clock (ten seconds), each engine         clock, engines (HTTP)
  _apply_weights     newer weights than its engines run           _serve_controller
  _heartbeat_loop    the clock (a heartbeat)                      clock

When it dies, its actors are told of the shards that are left, and ask one of those for the turns
that they wait for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time

import zmq
import zmq.asyncio

from config import Config, Job
from controller.leases import SignedLeases
from controller.transport import RouterSocket
from controller.turn_service import TurnService, build_turn_service
from engine.connection import EngineError
from envs.registry import make_environment
from protocol.codec import FrameReader, encode
from protocol.messages import EpisodeEnded, LoadWeights, Revoked, ShardState, TurnRequest
from protocol.router import make_secret_name
from protocol.security import bind, connect, load_keys
from telemetry.probes.clocks import LoopLag

log = logging.getLogger(__name__)

CONTROLLER = b"controller"
"""The name by which messages of the controller are refused."""


class ShardWorker:
    """Serves shard `number` (1, 2, ...) of a job; `run` returns when canceled."""

    def __init__(
        self,
        config: Config,
        number: int,
        reader: FrameReader,
        actors: RouterSocket,
        controller: zmq.asyncio.Socket,
        leases: SignedLeases,
        turn_service: TurnService,
    ) -> None:
        self._config = config
        self._number = number
        self._reader = reader
        self._actors = actors
        self._controller = controller
        self._leases = leases
        self._turn_service = turn_service
        self._newest_weights: LoadWeights | None = None
        self._to_load = asyncio.Event()
        self._loaded = asyncio.Event()  # set for good: the engines run weights of this run
        self._load_seconds = 0.0  # for which generation stood still at the last update
        self._lag = LoopLag()

    async def run(self) -> None:
        """Serve until canceled, or until any of the loops fails."""
        service = self._turn_service
        try:
            async with asyncio.TaskGroup() as loops:
                loops.create_task(self._serve_actors())
                loops.create_task(self._serve_controller())
                loops.create_task(service.signals.run())
                loops.create_task(service.engines.watch())
                loops.create_task(self._apply_weights())
                loops.create_task(self._heartbeat_loop())
                loops.create_task(self._lag.run())
        finally:
            await service.cancel_turns()
            await self._send_state(last=True)
            await service.close()
            self._actors.close(linger_ms=0)
            self._controller.close(linger=1000)

    async def _serve_actors(self) -> None:
        # Actors that have not heard that this shard began again ask it for turns at once.
        await self._loaded.wait()
        while True:
            actor, message, _ = await self._actors.receive()
            flaw = None
            match message:
                case TurnRequest():
                    flaw = await self._turn_service.accept(actor, message)
                case EpisodeEnded(key=key, lease_attempt=lease_attempt):
                    self._turn_service.end_lease(actor, key, lease_attempt)
                case _:
                    flaw = f"{type(message).__name__} that no actor sends to a shard"
            if flaw:
                self._actors.refuse(actor, flaw)

    async def _serve_controller(self) -> None:
        while True:
            message = self._reader.read(CONTROLLER, await self._controller.recv())
            match message:
                case None:
                    pass
                case LoadWeights():
                    self._note_weights(message)
                case Revoked(leases=leases):
                    for key, lease_attempt in leases:
                        self._leases.revoke(key, lease_attempt)
                        self._turn_service.forget(key, lease_attempt)
                case _:
                    self._reader.refuse(CONTROLLER, f"{type(message).__name__} is not for a shard")

    def _note_weights(self, weights: LoadWeights) -> None:
        """Have newer weights loaded; the same ones are named again while they are loaded."""
        newest = self._newest_weights
        if newest is None or weights.version > newest.version:
            self._newest_weights = weights
            self._to_load.set()

    async def _apply_weights(self) -> None:
        """Load the newest weights into the engines.

        Refused ones may have been replaced by newer ones meanwhile; else raises EngineError, since
        updates would wait for this shard for ever.
        """
        while True:
            await self._to_load.wait()
            self._to_load.clear()
            weights = self._newest_weights
            if weights is None or weights.version <= self._turn_service.version:
                continue
            try:
                self._load_seconds = await self._turn_service.load_weights(
                    weights.version, weights.checksum
                )
                self._loaded.set()
            except EngineError as error:
                if self._newest_weights is weights:
                    raise
                log.warning("weights of version %d: %s", weights.version, error)
            await self._send_state()

    async def _heartbeat_loop(self) -> None:
        service = self._turn_service
        while True:
            service.engines.check()
            service.spans.flush()
            service.forget_idle(time.monotonic() - self._config.actor.episode_seconds)
            await self._send_state()
            await asyncio.sleep(self._config.actor.heartbeat_seconds)

    async def _send_state(self, last: bool = False) -> None:
        gauges = self._turn_service.gauges()
        gauges["loop_lag_controller"] = self._lag.read().worst
        gauges["bad_frames"] += self._reader.dropped_frames
        state = ShardState(
            shard=self._number,
            version=self._turn_service.version,
            seconds=self._load_seconds,
            engines=self._turn_service.engine_status(),
            gauges=gauges,
            last=last,
        )
        await self._controller.send(encode(state))


def build_shard_worker(job: Job, context: zmq.asyncio.Context, number: int) -> ShardWorker:
    """Make shard `number` of a job: loads its environment and tokenizer, opens its sockets."""
    config = job.config
    keys = load_keys(config.security.keys)
    heartbeat_seconds = config.actor.heartbeat_seconds
    reader = FrameReader()
    router = context.socket(zmq.ROUTER)
    bind(router, job.endpoints.turns[number - 1], keys, "actors", heartbeat_seconds)
    actors = RouterSocket(router, reader)
    controller = context.socket(zmq.DEALER)
    name = make_secret_name(f"shard-{number}-{socket.gethostname()}-{os.getpid()}")
    controller.set(zmq.IDENTITY, name)
    connect(controller, job.endpoints.shards, keys, heartbeat_seconds)
    environment = make_environment(config.env.name, **config.environment_settings())
    leases = SignedLeases(job.permit_key)
    turn_service = build_turn_service(job, context, number, environment, leases, actors)
    return ShardWorker(config, number, reader, actors, controller, leases, turn_service)
