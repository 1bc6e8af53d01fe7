"""The controller: admits episodes, forwards turns, watches signals, owns the engines' weight
version.

                 Lease                              TurnRequest
  ┌──────────┐ ─────────────────────▶ ┌───────┐ ───────────────────▶ ┌──────────┐  HTTP   ┌────────┐
  │controller│                        │ actor │                      │controller│ ──────▶ │ engine │
  └──────────┘ ◀───────────────────── └───────┘ ◀─────────────────── └──────────┘ ◀────── └────────┘
     ▲    │      Credit, EpisodeEnded     │          TurnResult          ▲    │   SignalFrame │ ▲
     │    │ Applied                       │ Trajectory                   │    └── Steer ──────┘ │
     │    ▼                               ▼ ▲ Ack                        └─────────────────────-┘
  ┌──────────┐   Published, Evaluate  ┌─────────┐      weights: a file or NCCL, pause · update · resume
  │controller│ ◀───────────────────── │ learner │
  └──────────┘                        └─────────┘

  loop            waits for                                    woken by
  ─────────────────────────────────────────────────────────────────────────────────────────────────────
  _serve_actors   a frame from any actor                       actors
  _serve_learner  a frame from the learner                     learner
  _serve_shards   a frame from any shard                       shards (controller/shard_worker.py), if there are any
  signals.run     a signal frame                               the engine, every step with a watched row
  one task a turn the engine's answer, the turn's last signal  engine (HTTP), signals.run
  engines.watch   the clock (ten seconds), each engine         clock, engines (HTTP)
  _apply_weights  newly published weights                      _serve_learner
  _watch          the clock (a heartbeat)                      clock
  _report         the clock (a second)                         clock
  _dashboard      whoever looks                                a browser

No loop waits for another one's queue to have room: leases go out only against credits, an actor has
one turn in flight per episode, and published weights are bounded by the slots (the learner trains
on what was admitted). So nothing deadlocks: an episode that cannot go on is dropped, its group is
consumed without it, and its slot comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from pathlib import Path

import zmq
import zmq.asyncio
from msgspec.structs import replace
from tokenizers import Tokenizer

from config import Config, Job
from controller.admission import ActorReport, Admission, AdmissionSettings, CreditQueue
from controller.announced import Announced
from controller.dashboard import Dashboard
from controller.dashboard_state import shown
from controller.lease_token import permit
from controller.responses import dropped_episode
from controller.shard_registry import ShardRegistry, place_of
from controller.turn_service import TurnService
from controller.waits import ControllerWaits, Situation
from controller.welcome import welcome
from envs.registry import make_environment
from protocol.codec import FrameReader, encode
from protocol.delivery import DeliveryClient, DeliveryServer
from protocol.messages import (
    Credit,
    DropReason,
    EpisodeEnded,
    EpisodeKey,
    Evaluate,
    GroupsDropped,
    Heartbeat,
    HeartbeatAck,
    Hello,
    LearnerReady,
    LoadWeights,
    Message,
    Revoked,
    ShardAddress,
    ShardState,
    Shutdown,
    Stats,
    TurnRequest,
    WeightsApplied,
    WeightsPublished,
)
from protocol.router import display_name, is_nameless
from protocol.security import LOST_AFTER, bind, load_keys
from protocol.validation import validate_shard_state
from telemetry.probes.clocks import LoopLag
from telemetry.sinks.metrics_file import METRICS_FILE

log = logging.getLogger(__name__)

MAX_CREDIT = 10_000
"""Episodes an actor may play at once."""

LEARNER = b"learner"
"""The name under which it connects."""

LAST_WORDS = 1.0
"""Seconds in which shards that end say what they have counted."""


class Controller:
    def __init__(self, job: Job, context: zmq.asyncio.Context) -> None:
        self.config: Config = job.config
        tokenizer_file = f"{job.model_dir}/tokenizer.json"
        env = make_environment(self.config.env.name, **self.config.environment_settings())
        learner = self.config.learner
        self.admission = Admission(
            AdmissionSettings(
                groups=learner.groups_per_update,
                group_size=learner.group_size,
                max_staleness=learner.max_staleness,
                max_leases=self.config.actor.max_leases,
                seed=self.config.run.seed,
                train_size=env.size("train"),
                held_out_size=env.size("held_out"),
                episode_seconds=self.config.actor.episode_seconds,
            )
        )
        self._welcome = welcome(job)
        keys = load_keys(self.config.security.keys)
        self._actors = context.socket(zmq.ROUTER)
        beat = self.config.actor.heartbeat_seconds
        bind(self._actors, job.endpoints.actors, keys, "actors", beat)
        self._reader = FrameReader()
        self._learner = DeliveryServer(
            context, job.endpoints.learner, [LEARNER], keys, beat, self._reader
        )
        self._stats = DeliveryClient(
            context, job.endpoints.stats, b"controller", b"supervisor", keys, beat, self._reader
        )
        self._desk = TurnService(job, context, keys, 0, env, self._holds, self._to_actor)
        places = [
            place_of(endpoint, self.config.controller.hosts) for endpoint in job.endpoints.turns
        ]
        self._shards = ShardRegistry(places, LOST_AFTER * beat)
        self._shard_socket = context.socket(zmq.ROUTER)
        if job.endpoints.shards:
            bind(self._shard_socket, job.endpoints.shards, keys, "run", beat)
        self._told: list[ShardAddress] = []  # what actors know of the shards in force
        self._newest: LoadWeights | None = None
        self._secret = job.permit_key
        self._credits = CreditQueue()
        self._last_seen: dict[bytes, float] = {}
        self._gauges: dict[bytes, Heartbeat] = {}
        self._words: dict[bytes, ActorReport] = {}  # what each actor has said last that it plays
        self._announced = Announced(
            self.admission,
            learner.max_staleness,
            self.config.actor.episode_seconds,
            self._grant_leases,
        )
        self._finished = False  # the learner has written its last checkpoint
        self._lag = LoopLag()
        self._waits = ControllerWaits()
        self._last_gauges: dict[str, float | None] = {}
        decode = functools.partial(
            Tokenizer.from_file(tokenizer_file).decode, skip_special_tokens=False
        )
        parts = (
            self._desk.turns,
            self._desk.signals,
            self._engines,
            self.admission,
            self._last_seen,
            decode,
        )
        self._dashboard = Dashboard(
            job.endpoints.dashboard,
            self.config.dashboard,
            Path(job.run_dir) / METRICS_FILE,
            lambda: {
                "version": self.version,
                "updates": self.config.run.max_updates,
                "gauges": self._last_gauges,
                **shown(*parts),
            },
            lambda: self._last_gauges,
            self._desk.signals.set_viewers,
        )

    @property
    def version(self) -> int:
        """Of the weights that count: all engines in force run them. -1 before the first."""
        return self._shards.version

    async def run(self) -> None:
        """Until cancelled, or until any of the loops fails."""
        try:
            async with asyncio.TaskGroup() as loops:
                for loop in (
                    self._serve_actors,
                    self._serve_learner,
                    self._serve_shards,
                    self._desk.signals.run,
                    self._desk.engines.watch,
                    self._apply_weights,
                    self._watch,
                    self._report,
                    self._lag.run,
                    self._dashboard.run,
                    self._learner.resend_loop,
                    self._stats.run_send_only,
                ):
                    loops.create_task(loop())
        finally:
            await self.close()

    async def close(self) -> None:
        """Tell the actors that it is over, and let go of sockets and the engine."""
        await self._desk.cancel()
        last = [
            received.message for received in await self._learner.receive_waiting()
        ]  # what may have come just now
        self._finished = self._finished or any(isinstance(message, Shutdown) for message in last)
        if (
            self._finished
        ):  # else it may be resumed, and those who come from elsewhere wait for that
            for actor in list(self._last_seen):
                await self._to_actor(actor, Shutdown(reason="the run is over"))
        with contextlib.suppress(TimeoutError):  # of a shard that was killed, or is stopped
            async with asyncio.timeout(LAST_WORDS):
                while self._shards.peers():  # those that are left end now, too
                    await self._hear_shard()
        await self._send_gauges()  # what has come since the last time, for the summary
        await self._desk.close()
        self._shard_socket.close(linger=0)
        self._actors.close(linger=1000)
        self._learner.close(1.0)
        await self._stats.close(0.2)

    # --- actors

    async def _serve_actors(self) -> None:
        while True:
            actor, message, _ = await self._reader.receive(self._actors)
            if isinstance(
                message, Hello
            ):  # from a fork server that asks for its children, and plays nothing itself
                await self._to_actor(actor, self._welcome)
                continue
            if is_nameless(actor):
                self._reader.refuse(actor, f"{type(message).__name__} of an actor without a name")
                continue
            flaw = ""
            match message:
                case Credit(episodes=n) if 0 < n <= MAX_CREDIT - self._credits.count(actor):
                    self._credits.add(actor, n)
                    await self._grant_leases()
                case TurnRequest():
                    flaw = await self._desk.take(actor, message)
                case EpisodeEnded(key=key, lease_attempt=attempt):
                    if self.admission.end_episode(key, actor, attempt, time.monotonic()):
                        self._desk.forget(key, attempt)
                        await self._broadcast_revocations()
                case Heartbeat(asking=n, playing=playing) if 0 <= n <= MAX_CREDIT:
                    self._gauges[actor] = message
                    self._words[actor] = ActorReport(time.monotonic(), set(playing))
                    self._credits.hear_claim(actor, n)
                    await self._grant_leases()
                    await self._to_actor(actor, self._alive())
                case _:
                    flaw = f"{type(message).__name__} that no actor sends"
            if flaw:
                self._reader.refuse(actor, flaw)
                continue
            if actor not in self._last_seen and self._told:
                await self._to_actor(actor, self._alive())
            self._last_seen[actor] = time.monotonic()

    async def _grant_leases(self) -> None:
        """Leases against credits, first come first served, as long as there are both, and the
        learner's weights in the engine."""
        if self.version < 0:
            return
        while self._credits:
            actor = self._credits.first()
            lease = self.admission.lease(actor, time.monotonic())
            if lease is None:
                return
            self._credits.pop()
            await self._to_actor(
                actor,
                replace(lease, permit=permit(self._secret, actor, lease.key, lease.lease_attempt)),
            )

    def _holds(self, actor: bytes, request: TurnRequest) -> bool:
        return self.admission.has_lease(request.key, request.lease_attempt, actor)

    async def _watch(self) -> None:
        """Who is silent is lost.

        When this process itself stood still (stopped, or frozen), what came meanwhile is read
        first.
        """
        beat = self.config.actor.heartbeat_seconds
        longest = self.config.actor.episode_seconds
        while True:
            due = time.monotonic() + beat
            await asyncio.sleep(beat)
            now = time.monotonic()
            if now - due > beat:
                continue
            for number, seconds in self._shards.silent(now):
                log.warning(
                    "shard %d was silent for %.0f s: its turns go to others", number, seconds
                )
            await self._announce()
            self._desk.forget_before(now - longest)
            for actor in [
                a for a, seen in self._last_seen.items() if seen < now - LOST_AFTER * beat
            ]:
                await self._lose(actor)
            await self._give_up(
                self.admission.take_back_overdue(now)
                + self.admission.take_back_unknown(self._words, LOST_AFTER * beat)
            )

    async def _lose(self, actor: bytes) -> None:
        silent = LOST_AFTER * self.config.actor.heartbeat_seconds
        log.warning(
            "actor %s was silent for %g s: its episodes go to others", display_name(actor), silent
        )
        for book in (self._last_seen, self._gauges, self._words):
            book.pop(actor, None)
        self._credits.forget(actor)
        await self._give_up(self.admission.take_back_from(actor))

    async def _give_up(self, episodes: list[EpisodeKey]) -> None:
        await self._broadcast_revocations()
        for key in episodes:
            actor = self.config.actor
            detail = (
                f"not brought to an end by {actor.max_leases} actors (actor.max_leases), each "
                f"within {actor.episode_seconds:g} s"
            )
            detail += " (actor.episode_seconds)"
            await self._to_learner(dropped_episode(key, DropReason.ACTOR_LOST, detail))
        await self._grant_leases()

    # --- learner

    async def _serve_learner(self) -> None:
        while True:
            peer, message, _ = await self._learner.receive()
            match message:
                case LearnerReady() as state:
                    self._desk.turns.thresholds.restore(state.control_state)
                    self.admission.start(
                        state.next_group,
                        state.received,
                        state.updates_remaining,
                        state.consumed_groups,
                    )
                case WeightsPublished() as published:
                    self.admission.hold_until_applied(published.version, published.trained)
                    await self._announced.put(published)
                case GroupsDropped(groups=groups):
                    self.admission.replace_dropped(groups)
                case Evaluate() as request:
                    await self._announced.put(request)
                case Shutdown():
                    self._finished = True
                case _:
                    self._reader.refuse(peer, f"{type(message).__name__} that no learner sends")
            await self._grant_leases()

    async def _apply_weights(self) -> None:
        """New weights into all engines while they generate, and no evaluation is under way; then
        the slots they free."""
        while True:
            published = await self._announced.next_weights()
            self._newest = LoadWeights(version=published.version, checksum=published.checksum)
            for shard in self._shards.peers():
                await self._to_shard(shard, self._newest)
            own = self._desk.load(published.version, published.checksum, published.transfer)
            seconds = max(await asyncio.gather(own, self._shards.run(published.version)))
            self._shards.version = published.version
            await self._announce()  # before anything is admitted: see controller/shard_registry.py
            self.admission.free_slots(published.version)
            if published.last:
                await self._finish_training()
            control = self._desk.turns.thresholds.state()
            await self._to_learner(
                WeightsApplied(version=published.version, seconds=seconds, control_state=control)
            )
            await self._grant_leases()

    async def _finish_training(self) -> None:
        for key in self.admission.finish():
            await self._to_learner(
                dropped_episode(key, DropReason.CANCELLED, "the run ended before the episode did")
            )
        await self._broadcast_revocations()

    # --- shards

    async def _serve_shards(self) -> None:
        while True:
            await self._hear_shard()
            await self._announce()

    async def _hear_shard(self) -> None:
        peer, message, _ = await self._reader.receive(self._shard_socket)
        if not isinstance(message, ShardState) or is_nameless(peer):
            return self._reader.refuse(peer, f"{type(message).__name__} that no shard sends")
        if flaw := validate_shard_state(message, self.config.controller.shards):
            return self._reader.refuse(peer, flaw)
        self._shards.heard(peer, message, time.monotonic())
        if self._newest is not None and message.version < self._newest.version:
            await self._to_shard(peer, self._newest)

    async def _announce(self) -> None:
        """Tell the actors which shards are in force, when that has changed."""
        if self._told != (now := self._shards.in_force()):
            self._told = now
            for actor in self._last_seen:
                await self._to_actor(actor, self._alive())

    async def _broadcast_revocations(self) -> None:
        """Whoever answers turns is to know which leases lapsed; and who plays one, since he may be
        in a step that takes minutes."""
        self._announced.look()
        lapsed = self.admission.revoked
        self.admission.revoked = []
        for key, attempt, actor in lapsed:
            self._desk.forget(key, attempt)
            revoked = Revoked(leases=[(key, attempt)])
            await asyncio.gather(
                self._to_actor(actor, revoked),
                *(self._to_shard(shard, revoked) for shard in self._shards.peers()),
            )

    def _alive(self) -> HeartbeatAck:
        return HeartbeatAck(session=self._welcome.session, shards=self._told)

    # --- measurement

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._desk.engines.check()
            self._desk.spans.flush()
            await self._send_gauges()
            await self._stats.send(
                Stats(source="controller", event="waiting", values=self._waiting())
            )

    async def _send_gauges(self) -> None:
        self._last_gauges = self.gauges()
        await self._stats.send(Stats(source="controller", event="gauge", values=self._last_gauges))

    def _waiting(self) -> dict[str, float]:
        """What the controller waits for, in words: for how many seconds."""
        published = -1 if self._newest is None else self._newest.version
        situation = Situation(self.version, published, len(self._last_seen), self._engines())
        return self._waits.seconds(situation, self.admission, time.monotonic())

    def _engines(self) -> list[tuple[str, str, int]]:
        """Address, health and turns of each engine, of all shards."""
        return [*self._desk.standing(), *self._shards.standing()]

    def gauges(self) -> dict[str, float]:
        """What the controller knows now, of all shards together: counters are totals since its
        start."""
        beats = [self._gauges.pop(actor) for actor in list(self._gauges)]
        own = self._desk.gauges() | {"loop_lag_controller": self._lag.read().worst}
        own["bad_frames"] += self._reader.dropped_frames
        return {
            **self._shards.gauges(own),
            **self._desk.thresholds(),
            "queue_leases": len(self.admission.pending) + len(self.admission.pending_evaluation),
            "episodes_in_flight": len(self.admission.leased),
            "queue_weights": self._announced.waiting(),
            "slots_taken": len(self.admission.holding),
            "actors": len(self._last_seen),
            **({"loop_lag_actors": max(beat.loop_lag for beat in beats)} if beats else {}),
        }

    # --- sending

    async def _to_actor(self, actor: bytes, message: Message) -> None:
        await self._actors.send_multipart(
            [actor, encode(message)]
        )  # a ROUTER drops what is for a peer that is gone

    async def _to_learner(self, message: Message) -> None:
        await self._learner.send(LEARNER, message)

    async def _to_shard(self, shard: bytes, message: Message) -> None:
        await self._shard_socket.send_multipart([shard, encode(message)])
