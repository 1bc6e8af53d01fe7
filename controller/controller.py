"""The controller: admits episodes, forwards turns and watches signals.

It owns the engines' weight version.

              TurnRequest, Credit, EpisodeEnded                HTTP, ForceTokens
  ┌───────┐ ───────────────────────────────────▶ ┌────────────┐ ──────────────────▶ ┌────────┐
  │ actor │                                      │ controller │                     │ engine │
  └───────┘ ◀─────────────────────────────────── └────────────┘ ◀────────────────── └────────┘
    │   ▲     Lease, TurnResult, Revoked           ▲        │      responses, SignalFrame
    │   │             WeightsPublished, Evaluate   │        │ WeightsApplied
    │   │                                          │        ▼
    │   │ Ack                                    ┌────────────┐  weights: a file or NCCL
    │   └─────────────────────────────────────── │  learner   │ ─────────────────────────▶ engines
    └──────────────────────────────────────────▶ └────────────┘
        Trajectory

  loop            waits for                                    woken by
  ─────────────────────────────────────────────────────────────────────────────────────────────────
  serve_actors    a frame from any actor                       actors
  serve_learner   a frame from the learner                     learner
  serve_shards    a frame from any shard                       shards (controller/shard_worker.py)
  signals.run     a signal frame                               the engine, steps with watched rows
  a task a turn   the engine's answer, the turn's last signal  engine (HTTP), signals.run
  engines.watch   the clock (ten seconds), each engine         clock, engines (HTTP)
  apply_weights   newly published weights                      serve_learner
  switch_engines  the learner's word that engines are to sleep serve_learner
  liveness_loop   the clock (a heartbeat)                      clock
  report_loop     the clock (a second)                         clock
  dashboard.run   whoever looks                                a browser

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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import zmq.asyncio
from tokenizers import Tokenizer

from config import Config, Job
from controller.admission import Admission, AdmissionSettings
from controller.announcements import Announcements
from controller.dashboard import Dashboard
from controller.leases import LeaseGranter
from controller.reporting import ControllerState
from controller.responses import dropped_episode
from controller.roster import ActorRoster
from controller.shard_registry import ShardRegistry, build_shard_registry
from controller.transport import Transport, build_welcome, open_transport
from controller.turn_service import TurnService, build_turn_service
from envs.base import Environment
from envs.registry import make_environment
from protocol.messages import (
    Credit,
    DropReason,
    EnginesAsleep,
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
    SleepEngines,
    Stats,
    TasksPlayed,
    TurnRequest,
    WeightsApplied,
    WeightsPublished,
    Welcome,
)
from protocol.router import display_name, is_nameless
from protocol.security import LOST_AFTER
from protocol.validation import validate_shard_state
from telemetry.sinks.metrics_file import METRICS_FILE

log = logging.getLogger(__name__)

MAX_CREDIT = 10_000
"""Episodes an actor may play at once."""

LAST_WORDS_SECONDS = 1.0
"""Time in which shards that end say what they have counted."""


class ControllerMemory(msgspec.Struct, frozen=True):
    """State of the controller in a learner's checkpoint, each part as it encodes itself."""

    thresholds: msgspec.Raw
    curriculum: msgspec.Raw


@dataclass(eq=False, kw_only=True)
class Controller:
    """The loops between actors, learner, shards and engines; `build_controller` makes one."""

    config: Config
    welcome: Welcome
    transport: Transport
    admission: Admission
    roster: ActorRoster
    leases: LeaseGranter
    turn_service: TurnService
    shards: ShardRegistry
    announcements: Announcements
    state: ControllerState
    dashboard: Dashboard
    _announced_shards: list[ShardAddress] = field(default_factory=list)
    """Shards in force, as actors were told last."""
    _switches: asyncio.Queue[bool] = field(default_factory=asyncio.Queue)
    """True while engines are to sleep, as the learner has asked."""
    _is_finished: bool = False
    """The learner has written its last checkpoint."""

    @property
    def version(self) -> int:
        """Weight version that every engine in force runs; -1 before the first."""
        return self.shards.version

    async def run(self) -> None:
        """Serve until canceled, or until any of the loops fails."""
        try:
            async with asyncio.TaskGroup() as loops:
                loops.create_task(self.serve_actors())
                loops.create_task(self.serve_learner())
                loops.create_task(self.serve_shards())
                loops.create_task(self.turn_service.signals.run())
                loops.create_task(self.turn_service.engines.watch())
                loops.create_task(self.apply_weights())
                loops.create_task(self.switch_engines())
                loops.create_task(self.liveness_loop())
                loops.create_task(self.report_loop())
                loops.create_task(self.state.lag.run())
                loops.create_task(self.dashboard.run())
                loops.create_task(self.transport.learner.resend_loop())
                loops.create_task(self.transport.stats.run_send_only())
        finally:
            await self.close()

    async def close(self) -> None:
        """Tell the actors that it is over, and let go of sockets and the engine."""
        await self.turn_service.cancel_turns()
        for received in await self.transport.learner.receive_waiting():  # what has come just now
            if isinstance(received.message, Shutdown):
                self._is_finished = True
        # Else it may be resumed, and those who come from elsewhere wait for that.
        if self._is_finished:
            await self._broadcast(Shutdown(reason="the run is over"))
        with contextlib.suppress(TimeoutError):  # of a shard that was killed, or is stopped
            async with asyncio.timeout(LAST_WORDS_SECONDS):
                while self.shards.peers():  # those that remain end now, too
                    await self._hear_shard()
        await self._send_gauges()  # what has come since the last time, for the summary
        await self.turn_service.close()
        await self.transport.close()

    # --- actors

    async def serve_actors(self) -> None:
        """Serve forever what actors send."""
        actors = self.transport.actors
        while True:
            actor, message, _ = await actors.receive()
            if isinstance(message, Hello):
                # From a fork server that asks for its children, and plays nothing itself.
                await actors.send(actor, self.welcome)
                continue
            if is_nameless(actor):
                actors.refuse(actor, f"{type(message).__name__} of an actor without a name")
                continue
            flaw = await self._take_from_actor(actor, message)
            if flaw:
                actors.refuse(actor, flaw)
                continue
            if actor not in self.roster and self._announced_shards:
                await actors.send(actor, self._heartbeat_ack())
            self.roster.see(actor, time.monotonic())

    async def _take_from_actor(self, actor: bytes, message: Message) -> str | None:
        """Act on a message; returns what is wrong with it, if anything is."""
        credits = self.leases.credits
        match message:
            case Credit(episodes=n) if 0 < n <= MAX_CREDIT - credits.count(actor):
                credits.add(actor, n)
                await self.leases.grant()
            case TurnRequest():
                return await self.turn_service.accept(actor, message)
            case EpisodeEnded(key=key, lease_attempt=lease_attempt):
                if self.admission.end_episode(key, actor, lease_attempt, time.monotonic()):
                    self.turn_service.forget(key, lease_attempt)
                    await self._broadcast_revocations()
            case Heartbeat(asking=n) if 0 <= n <= MAX_CREDIT:
                self.roster.hear(actor, message, time.monotonic())
                credits.hear_claim(actor, n)
                await self.leases.grant()
                await self.transport.actors.send(actor, self._heartbeat_ack())
            case _:
                return f"{type(message).__name__} that no actor sends"
        return None

    async def liveness_loop(self) -> None:
        """Take those who are silent for lost.

        When this process itself stood still (stopped, or frozen), what came meanwhile is read
        first.
        """
        heartbeat_seconds = self.config.actor.heartbeat_seconds
        while True:
            due = time.monotonic() + heartbeat_seconds
            await asyncio.sleep(heartbeat_seconds)
            now = time.monotonic()
            if now - due <= heartbeat_seconds:
                await self._check_liveness(now)

    async def _check_liveness(self, now: float) -> None:
        patience_seconds = LOST_AFTER * self.config.actor.heartbeat_seconds
        for number, seconds in self.shards.drop_silent(now):
            log.warning("shard %d was silent for %.0f s: its turns go to others", number, seconds)
        await self._broadcast_shards()
        self.turn_service.forget_idle(now - self.config.actor.episode_seconds)
        for actor in self.roster.silent_since(now - patience_seconds):
            await self._handle_actor_lost(actor)
        exhausted = self.admission.take_back_overdue(now)
        exhausted += self.admission.take_back_unknown(self.roster.reports, patience_seconds)
        await self._drop_exhausted(exhausted)

    async def _handle_actor_lost(self, actor: bytes) -> None:
        log.warning(
            "actor %s was silent for %g s: its episodes go to others",
            display_name(actor),
            LOST_AFTER * self.config.actor.heartbeat_seconds,
        )
        self.roster.forget(actor)
        self.leases.credits.forget(actor)
        await self._drop_exhausted(self.admission.take_back_from(actor))

    async def _drop_exhausted(self, episodes: list[EpisodeKey]) -> None:
        """Drop episodes whose leases are used up.

        It comes after others were taken back from their actors.
        """
        await self._broadcast_revocations()
        settings = self.config.actor
        detail = (
            f"not brought to an end by {settings.max_leases} actors (actor.max_leases), each "
            f"within {settings.episode_seconds:g} s (actor.episode_seconds)"
        )
        for key in episodes:
            notice = dropped_episode(key, DropReason.ACTOR_LOST, detail)
            await self.transport.tell_learner(notice)
        await self.leases.grant()

    # --- learner

    async def serve_learner(self) -> None:
        """Serve forever what the learner sends."""
        while True:
            peer, message, _ = await self.transport.learner.receive()
            match message:
                case LearnerReady() as ready:
                    self._restore_state(ready.control_state)
                    self.admission.start(
                        ready.next_group,
                        ready.received,
                        ready.updates_remaining,
                        ready.consumed_groups,
                        ready.tasks,
                    )
                case WeightsPublished() as published:
                    self.admission.hold_until_applied(published.version, published.trained)
                    await self.announcements.put(published)
                case GroupsDropped(groups=groups):
                    self.admission.replace_dropped(groups)
                case TasksPlayed(outcomes=outcomes):
                    self.admission.note_outcomes(outcomes)
                case Evaluate() as request:
                    await self.announcements.put(request)
                case SleepEngines(asleep=asleep):
                    self._switches.put_nowait(asleep)
                case Shutdown():
                    self._is_finished = True
                case _:
                    reason = f"{type(message).__name__} that no learner sends"
                    self.transport.reader.refuse(peer, reason)
            await self.leases.grant()

    async def apply_weights(self) -> None:
        """Load new weights into all engines while they generate; then free their slots.

        No evaluation is under way meanwhile.
        """
        while True:
            published = await self.announcements.next_weights(self._drop_evaluation_episodes)
            version = published.version
            newest = LoadWeights(version=version, checksum=published.checksum)
            self.shards.newest_weights = newest
            await self._send_to_shards(newest)
            load = self.turn_service.load_weights(version, newest.checksum, published.transfer)
            seconds = max(await asyncio.gather(load, self.shards.await_version(version)))
            self.shards.version = version
            # Before anything is admitted: see controller/shard_registry.py.
            await self._broadcast_shards()
            self.admission.free_slots(version)
            if published.last:
                await self.finish_training()
            control_state = self._encode_state()
            await self.transport.tell_learner(
                WeightsApplied(version=version, seconds=seconds, control_state=control_state)
            )
            await self.leases.grant()

    def _encode_state(self) -> bytes:
        """Encode what a resumed run goes on with."""
        state = ControllerMemory(
            msgspec.Raw(self.turn_service.turns.thresholds.state()),
            msgspec.Raw(self.admission.curriculum.state()),
        )
        return msgspec.json.encode(state)

    def _restore_state(self, state: bytes) -> None:
        """Go on with the state of a checkpoint; of a new run it is empty."""
        if state:
            memory = msgspec.json.decode(state, type=ControllerMemory)
            self.turn_service.turns.thresholds.restore(bytes(memory.thresholds))
            self.admission.curriculum.restore(bytes(memory.curriculum))

    async def switch_engines(self) -> None:
        """Put the engines to sleep and wake them, as the learner asks, and tell it."""
        while True:
            asleep = await self._switches.get()
            await self.turn_service.set_asleep(asleep)
            await self.transport.tell_learner(EnginesAsleep(asleep=asleep))

    async def finish_training(self) -> None:
        """Cancel the training episodes that have not ended."""
        detail = "the run ended before the episode did"
        for key in self.admission.finish():
            notice = dropped_episode(key, DropReason.CANCELED, detail)
            await self.transport.tell_learner(notice)
        await self._broadcast_revocations()

    async def _drop_evaluation_episodes(self, episodes: Sequence[EpisodeKey]) -> None:
        """Drop episodes of an evaluation, for which newer weights wait no more."""
        seconds = self.config.actor.episode_seconds
        detail = f"no episode of its evaluation ended within {seconds:g} s (actor.episode_seconds)"
        for key in episodes:
            notice = dropped_episode(key, DropReason.CANCELED, detail)
            await self.transport.tell_learner(notice)
        await self._broadcast_revocations()

    # --- shards

    async def serve_shards(self) -> None:
        """Serve forever what shards say of themselves."""
        while True:
            await self._hear_shard()
            await self._broadcast_shards()

    async def _hear_shard(self) -> None:
        shards = self.transport.shards
        peer, message, _ = await shards.receive()
        if not isinstance(message, ShardState) or is_nameless(peer):
            shards.refuse(peer, f"{type(message).__name__} that no shard sends")
            return
        flaw = validate_shard_state(message, self.config.cluster.shards)
        if flaw:
            shards.refuse(peer, flaw)
            return
        self.shards.update(peer, message, time.monotonic())
        newest = self.shards.newest_weights
        if newest is not None and message.version < newest.version:
            await shards.send(peer, newest)

    async def _send_to_shards(self, message: Message) -> None:
        for shard in self.shards.peers():
            await self.transport.shards.send(shard, message)

    # --- what actors are told

    async def _broadcast(self, message: Message) -> None:
        for actor in self.roster:
            await self.transport.actors.send(actor, message)

    async def _broadcast_shards(self) -> None:
        """Tell the actors which shards are in force, when that has changed."""
        in_force = self.shards.addresses_in_force()
        if in_force != self._announced_shards:
            self._announced_shards = in_force
            await self._broadcast(self._heartbeat_ack())

    async def _broadcast_revocations(self) -> None:
        """Tell whoever answers turns which leases lapsed, and whoever plays one.

        A player may be in a step that takes minutes.
        """
        self.announcements.check_evaluations()
        lapsed = self.admission.revoked
        self.admission.revoked = []
        for key, lease_attempt, actor in lapsed:
            self.turn_service.forget(key, lease_attempt)
            revoked = Revoked(leases=[(key, lease_attempt)])
            await asyncio.gather(
                self.transport.actors.send(actor, revoked), self._send_to_shards(revoked)
            )

    def _heartbeat_ack(self) -> HeartbeatAck:
        return HeartbeatAck(session=self.welcome.session, shards=self._announced_shards)

    # --- measurement

    async def report_loop(self) -> None:
        """Tell the supervisor once a second what the controller knows."""
        while True:
            await asyncio.sleep(1.0)
            self.turn_service.engines.check()
            self.turn_service.spans.flush()
            await self._send_gauges()
            await self._tell_supervisor("waiting", self.state.waits())

    async def _send_gauges(self) -> None:
        await self._tell_supervisor("gauge", self.state.read_gauges())

    async def _tell_supervisor(self, event: str, values: dict) -> None:
        await self.transport.stats.send(Stats(source="controller", event=event, values=values))


def build_controller(job: Job, context: zmq.asyncio.Context) -> Controller:
    """Make the controller of a job: loads its environment and tokenizer, opens its sockets."""
    config = job.config
    environment = make_environment(config.env.name, **config.environment_settings())
    welcome = build_welcome(job)
    transport = open_transport(job, context)
    admission = Admission(_admission_settings(config, environment))
    turn_service = build_turn_service(job, context, 0, environment, admission, transport.actors)
    shards = build_shard_registry(job)
    roster = ActorRoster()
    leases = LeaseGranter(admission, shards, transport.actors, job.permit_key)
    announcements = Announcements(
        admission, config.learner.max_staleness, config.actor.episode_seconds, leases.grant
    )
    tokenizer = Tokenizer.from_file(f"{job.model_dir}/tokenizer.json")
    state = ControllerState(
        config,
        admission,
        turn_service,
        shards,
        roster,
        announcements,
        transport.reader,
        functools.partial(tokenizer.decode, skip_special_tokens=False),
    )
    metrics_file = Path(job.run_dir) / METRICS_FILE
    return Controller(
        config=config,
        welcome=welcome,
        transport=transport,
        admission=admission,
        roster=roster,
        leases=leases,
        turn_service=turn_service,
        shards=shards,
        announcements=announcements,
        state=state,
        dashboard=Dashboard(job.endpoints.dashboard, config.dashboard, metrics_file, state),
    )


def _admission_settings(config: Config, environment: Environment) -> AdmissionSettings:
    return AdmissionSettings(
        groups=config.learner.groups_per_update,
        group_size=config.learner.group_size,
        max_staleness=config.learner.max_staleness,
        max_leases=config.actor.max_leases,
        seed=config.run.seed,
        train_size=environment.size("train"),
        held_out_size=environment.size("held_out"),
        evaluation=config.evaluation_plan(),
        episode_seconds=config.actor.episode_seconds,
        curriculum_half_life=config.env.curriculum_half_life * config.learner.groups_per_update,
    )
