"""A shard: takes turns for its share of the engines, as the controller does for its own.

It admits nothing and keeps nothing.

                    TurnRequest, EpisodeEnded            ShardState
  ┌───────┐ ─────────────────────────▶ ┌───────┐ ─────────────────────▶ ┌──────────┐
  │ actor │                            │ shard │                        │controller│
  └───────┘ ◀───────────────────────── └───────┘ ◀───────────────────── └──────────┘
                TurnResult                ▲  │           Load, Revoked
                              SignalFrame │  │ HTTP, Steer
                                          │  ▼
                                        ┌────────┐
                                        │ engine │  those of this shard alone
                                        └────────┘

  loop               waits for                                    woken by
  ──────────────────────────────────────────────────────────────────────────────────
  _serve_actors      a frame from any actor                       actors
  _serve_controller  a frame from the controller                  controller
  signals.run        a signal frame                               its engines
  engines.watch      the clock (ten seconds), each engine         clock, engines (HTTP)
  _apply_weights     newer weights than its engines run           _serve_controller
  _beat              the clock (a heartbeat)                      clock

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

from config import Job
from controller.lease_token import is_permitted
from controller.turn_service import TurnService
from engine.connection import EngineError
from envs.registry import make_environment
from protocol.codec import FrameReader, encode
from protocol.messages import (
    EpisodeEnded,
    EpisodeKey,
    LoadWeights,
    Message,
    Revoked,
    ShardState,
    TurnRequest,
)
from protocol.router import make_secret_name
from protocol.security import bind, connect, load_keys
from telemetry.probes.clocks import LoopLag

log = logging.getLogger(__name__)


class ShardWorker:
    """Number `shard` (1, 2, ...) of a job; `run` returns when cancelled."""

    def __init__(self, job: Job, context: zmq.asyncio.Context, shard: int) -> None:
        self._config = job.config
        self._number = shard
        keys = load_keys(self._config.security.keys)
        self._actors, self._controller = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
        beat = self._config.actor.heartbeat_seconds
        bind(self._actors, job.endpoints.turns[shard - 1], keys, "actors", beat)
        self._controller.set(
            zmq.IDENTITY, make_secret_name(f"shard-{shard}-{socket.gethostname()}-{os.getpid()}")
        )
        connect(self._controller, job.endpoints.shards, keys, beat)
        environment = make_environment(self._config.env.name, **self._config.environment_settings())
        self._desk = TurnService(
            job, context, keys, shard, environment, self._holds, self._to_actor
        )
        self._reader = FrameReader()
        self._secret = job.permit_key
        self._revoked: set[tuple[EpisodeKey, int]] = set()
        self._newest: LoadWeights | None = None
        self._to_load = asyncio.Event()
        self._loaded = asyncio.Event()  # set for good: the engines run weights of this run
        self._seconds = 0.0
        self._lag = LoopLag()

    async def run(self) -> None:
        """Until cancelled, or until any of the loops fails."""
        desk = self._desk
        loops = (
            self._serve_actors,
            self._serve_controller,
            desk.signals.run,
            desk.engines.watch,
            self._apply_weights,
            self._beat,
            self._lag.run,
        )
        try:
            async with asyncio.TaskGroup() as group:
                for loop in loops:
                    group.create_task(loop())
        finally:
            await self._desk.cancel()
            await self._tell(last=True)
            await self._desk.close()
            self._actors.close(linger=0)
            self._controller.close(linger=1000)

    async def _serve_actors(self) -> None:
        await (
            self._loaded.wait()
        )  # actors that have not heard that this shard began again ask it for turns at once
        while True:
            actor, message, _ = await self._reader.receive(self._actors)
            flaw = ""
            match message:
                case TurnRequest():
                    flaw = await self._desk.take(actor, message)
                case EpisodeEnded(key=key, lease_attempt=attempt):
                    self._desk.ended(actor, key, attempt)
                case _:
                    flaw = f"{type(message).__name__} that no actor sends to a shard"
            if flaw:
                self._reader.refuse(actor, flaw)

    async def _serve_controller(self) -> None:
        while True:
            match self._reader.read(b"controller", await self._controller.recv()):
                case LoadWeights() as newest if (
                    self._newest is None or newest.version > self._newest.version
                ):
                    self._newest = newest
                    self._to_load.set()
                case LoadWeights():  # named again, while it is loaded
                    pass
                case Revoked(leases=leases):
                    for key, attempt in leases:
                        self._revoked.add((key, attempt))
                        self._desk.forget(key, attempt)
                case None:
                    pass
                case other:
                    self._reader.refuse(b"controller", f"{type(other).__name__} is not for a shard")

    async def _apply_weights(self) -> None:
        """The newest weights into the engines.

        Refused ones may have been replaced by newer ones meanwhile; else raises EngineError, since
        updates would wait for this shard for ever.
        """
        while True:
            await self._to_load.wait()
            self._to_load.clear()
            tried = self._newest
            if tried.version <= self._desk.version:
                continue
            try:
                self._seconds = await self._desk.load(tried.version, tried.checksum)
                self._loaded.set()
            except EngineError as error:
                if self._newest is tried:
                    raise
                log.warning("weights of version %d: %s", tried.version, error)
            await self._tell()

    async def _beat(self) -> None:
        while True:
            self._desk.engines.check()
            self._desk.spans.flush()
            self._desk.forget_before(time.monotonic() - self._config.actor.episode_seconds)
            await self._tell()
            await asyncio.sleep(self._config.actor.heartbeat_seconds)

    async def _tell(self, last: bool = False) -> None:
        gauges = self._desk.gauges() | {"loop_lag_controller": self._lag.read().worst}
        gauges["bad_frames"] += self._reader.dropped_frames
        state = ShardState(
            shard=self._number,
            version=self._desk.version,
            seconds=self._seconds,
            engines=self._desk.standing(),
            gauges=gauges,
            last=last,
        )
        await self._controller.send(encode(state))

    def _holds(self, actor: bytes, request: TurnRequest) -> bool:
        return (request.key, request.lease_attempt) not in self._revoked and is_permitted(
            self._secret, actor, request
        )

    async def _to_actor(self, actor: bytes, message: Message) -> None:
        await self._actors.send_multipart(
            [actor, encode(message)]
        )  # a ROUTER drops what is for a peer that is gone
