"""The controller: admits episodes, forwards turns, watches signals, owns the engines' weight version.

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
  signals.run     a signal frame                               the engine, every step with a watched row
  one task a turn the engine's answer, the turn's last signal  engine (HTTP), signals.run
  _apply_weights  newly published weights                      _serve_learner
  _watch_actors   the clock (a heartbeat)                      clock
  _report         the clock (a second)                         clock
  _dashboard      whoever looks                                a browser

No loop waits for another one's queue to have room: leases go out only against credits, an actor has one turn in flight per
episode, and published weights are bounded by the slots (the learner trains on what was admitted). So nothing deadlocks: an
episode that cannot go on is dropped, its group is consumed without it, and its slot comes back.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from pathlib import Path

import zmq
import zmq.asyncio
from tokenizers import Tokenizer

from config import Config, Job
from controller.admission import Admission, AdmissionSettings, episode_seed
from controller.credits import Credits
from controller.dashboard import Dashboard
from controller.endings import dropped, failed
from controller.engine.pool import EnginePool, Health
from controller.rules.thinking import NEVER
from controller.shown import shown
from controller.signals import SignalRouter
from controller.stream import Streamer
from controller.think_tokens import think_tokens
from controller.turns import TurnRunner
from controller.welcome import welcome
from envs.registry import make_environment
from protocol.checks import Bounds, of_turn_request
from protocol.codec import FrameReader, encode
from protocol.messages import (
    Alive,
    Applied,
    Credit,
    DropReason,
    EpisodeEnded,
    EpisodeKey,
    Evaluate,
    GroupsDropped,
    Heartbeat,
    Hello,
    LearnerState,
    Message,
    Published,
    Shutdown,
    Stats,
    TurnFailed,
    TurnRequest,
    TurnResult,
    weights_file,
)  # fmt: skip
from protocol.security import bind, connect, load_keys
from telemetry.idle_clock import IdleClock
from telemetry.loop_lag import LoopLag
from telemetry.metrics_file import METRICS_FILE
from telemetry.spans import SpanFile

log = logging.getLogger(__name__)

MAX_CREDIT = 10_000
"""Episodes an actor may play at once."""

LOST_AFTER = 5
"""Heartbeats an actor may miss."""


class Controller:
    def __init__(self, job: Job, context: zmq.asyncio.Context) -> None:
        self.config: Config = job.config
        tokenizer_file = f"{job.model_dir}/tokenizer.json"
        env = make_environment(self.config.env.name, **self.config.environment_settings())
        learner = self.config.learner
        self.admission = Admission(AdmissionSettings(
            groups=learner.groups, group_size=learner.group_size, max_staleness=learner.max_staleness,
            max_leases=self.config.actor.max_leases, seed=self.config.run.seed, train_size=env.size("train"),
            held_out_size=env.size("held_out"),
        ))  # fmt: skip
        self._welcome = welcome(job)
        keys = load_keys(self.config.security.keys)
        self._actors, self._learner = context.socket(zmq.ROUTER), context.socket(zmq.ROUTER)
        # A ROUTER drops what does not fit its queue; and at the end of a run there is a word for each episode that is cancelled.
        self._learner.set(zmq.SNDHWM, 0)
        bind(self._actors, job.endpoints.actors, keys, "actors")
        bind(self._learner, job.endpoints.learner, keys, "run")
        self._stats = context.socket(zmq.PUSH)
        self._stats.set(zmq.LINGER, 0)
        connect(self._stats, job.endpoints.stats, keys)
        self._reader = FrameReader()
        self._tokens = tokens = think_tokens(Path(job.model_dir), env, self.config.control)
        self._bounds = Bounds(tokens.vocabulary, self.config.engine.max_model_len - 1, learner.group_size)
        self._signals = SignalRouter(context, job.endpoints.signals, tokens, keys)
        self._engines = EnginePool(job.endpoints.engines, self.config.engine.start_seconds, job.engine_key)
        self._weights_dir, self._meeting = Path(job.weights_dir), job.endpoints.weights
        self._turns = TurnRunner(self.config, self._engines, self._signals, tokens, lambda: self.version)
        self.version = -1
        self._learner_id: bytes | None = None
        self._credits = Credits()
        self._last_seen: dict[bytes, float] = {}
        self._gauges: dict[bytes, Heartbeat] = {}
        self._published: asyncio.Queue[Published] = asyncio.Queue(maxsize=learner.max_staleness + 2)
        self._turn_tasks: set[asyncio.Task] = set()
        self._asked: set[tuple[bytes, EpisodeKey, int]] = set()  # (actor, episode, attempt) whose turn is under way
        self._answers: dict[tuple[bytes, EpisodeKey, int], TurnResult | TurnFailed] = {}  # to the last one of each
        self._finished = False
        self._lag = LoopLag()
        self._idle = IdleClock()
        self._spans = SpanFile(Path(job.run_dir), "controller")
        self._last_gauges: dict[str, float | None] = {}
        decode = functools.partial(Tokenizer.from_file(tokenizer_file).decode, skip_special_tokens=False)
        parts = (self._turns, self._signals, self._engines, self.admission, self._last_seen, decode)
        self._dashboard = Dashboard(
            job.endpoints.dashboard, self.config.dashboard, Path(job.run_dir) / METRICS_FILE,
            lambda: {"version": self.version, "updates": self.config.run.updates, "gauges": self._last_gauges, **shown(*parts)},
            lambda: self._last_gauges, self._signals.looked_at,
        )  # fmt: skip

    async def run(self) -> None:
        """Until cancelled, or until any of the loops fails."""
        try:
            async with asyncio.TaskGroup() as loops:
                for loop in (
                    self._serve_actors, self._serve_learner, self._signals.run, self._apply_weights, self._watch_actors, self._report,
                    self._lag.run, self._dashboard.run,
                ):  # fmt: skip
                    loops.create_task(loop())
        finally:
            await self.close()

    async def close(self) -> None:
        """Tell the actors that it is over, and let go of sockets and the engine."""
        for task in self._turn_tasks:
            task.cancel()
        await asyncio.gather(*self._turn_tasks, return_exceptions=True)
        if self._finished:  # else it may be resumed, and those who come from elsewhere wait for that
            for actor in list(self._last_seen):
                await self._to_actor(actor, Shutdown(reason="the run is over"))
        await self._send_gauges()  # what has come since the last time, for the summary
        await self._engines.close()
        self._signals.close()
        self._spans.close()
        self._actors.close(linger=1000)
        self._learner.close(linger=1000)
        self._stats.close(linger=200)

    # --- actors

    async def _serve_actors(self) -> None:
        while True:
            actor, message, _ = await self._reader.receive(self._actors)
            if isinstance(message, Hello):  # from a fork server that asks for its children, and plays nothing itself
                await self._to_actor(actor, self._welcome)
                continue
            flaw = ""
            match message:
                case Credit(episodes=n) if 0 < n <= MAX_CREDIT - self._credits.of(actor):
                    self._credits.add(actor, n)
                    await self._hand_out()
                case TurnRequest():
                    flaw = await self._start_turn(actor, message)
                case EpisodeEnded(key=key, attempt=attempt):
                    if self.admission.ended(key, actor, attempt):
                        self._turns.forget(key)
                case Heartbeat(asking=n) if 0 <= n <= MAX_CREDIT:
                    self._gauges[actor] = message
                    self._credits.claimed(actor, n)
                    await self._to_actor(actor, Alive(session=self._welcome.session))
                case _:
                    flaw = f"{type(message).__name__} that no actor sends"
            if flaw:
                self._reader.refuse(actor, flaw)
            else:
                self._last_seen[actor] = time.monotonic()

    async def _hand_out(self) -> None:
        """Leases against credits, first come first served, as long as there are both, and the learner's weights in the engine."""
        if self.version < 0:
            return
        while self._credits:
            actor = self._credits.first()
            lease = self.admission.lease(actor, time.monotonic())
            if lease is None:
                return
            self._credits.served()
            await self._to_actor(actor, lease)

    async def _start_turn(self, actor: bytes, request: TurnRequest) -> str:
        """What is wrong with the request, if anything is."""
        lease = (actor, request.key, request.attempt)  # with the actor, or one that asks for another's turn would keep that from it
        if flaw := of_turn_request(request, self._bounds):
            return flaw
        if lease in self._asked:
            return ""  # asked again: an answer that takes long is still to come
        if (answer := self._answers.get(lease)) is not None and answer.turn == request.turn:
            await self._to_actor(actor, answer)  # asked again, since it was lost
            return ""
        self._asked.add(lease)
        task = asyncio.create_task(self._turn(actor, request))
        self._turn_tasks.add(task)
        self._idle.busy(len(self._turn_tasks))
        task.add_done_callback(self._turn_ended)
        return ""

    def _turn_ended(self, task: asyncio.Task) -> None:
        self._turn_tasks.discard(task)
        self._idle.busy(len(self._turn_tasks))
        if not task.cancelled() and task.exception() is not None:
            log.error("a turn failed in the controller", exc_info=task.exception())

    async def _turn(self, actor: bytes, request: TurnRequest) -> None:
        lease = (actor, request.key, request.attempt)
        try:
            answer = self._answers[lease] = await self._answer(actor, request)
        finally:
            self._asked.discard(lease)  # before the actor knows, and asks for the next one
        await self._to_actor(actor, answer)

    async def _answer(self, actor: bytes, request: TurnRequest) -> TurnResult | TurnFailed:
        if not self.admission.holds(request.key, request.attempt, actor):
            return failed(request, DropReason.CANCELLED, "its lease is no longer in force")
        try:
            with self._spans.span("turn", request.key.id, turn=request.turn):
                return await self._turns.run(request, episode_seed(self.config.run.seed, request.key))
        except Exception as error:  # ours to mend; an actor without an answer would wait for ever
            log.exception("a turn failed in the controller")
            return failed(request, DropReason.ENGINE_ERROR, f"the controller failed in this turn: {error!r}")

    async def _watch_actors(self) -> None:
        while True:
            await asyncio.sleep(self.config.actor.heartbeat_seconds)
            horizon = time.monotonic() - LOST_AFTER * self.config.actor.heartbeat_seconds
            for actor in [a for a, seen in self._last_seen.items() if seen < horizon]:
                await self._lose(actor)
            await self._give_up(self.admission.overdue(time.monotonic() - self.config.actor.episode_seconds))
            held = {(holder.actor, key, holder.attempt) for key, holder in self.admission.leased.items()}
            self._answers = {lease: answer for lease, answer in self._answers.items() if lease in held}

    async def _lose(self, actor: bytes) -> None:
        silent = LOST_AFTER * self.config.actor.heartbeat_seconds
        log.warning("actor %s was silent for %g s: its episodes go to others", actor.decode(errors="replace"), silent)
        for book in (self._last_seen, self._gauges):
            book.pop(actor, None)
        self._credits.lost(actor)
        await self._give_up(self.admission.actor_lost(actor))

    async def _give_up(self, episodes: list[EpisodeKey]) -> None:
        for key in episodes:
            self._turns.forget(key)
            detail = f"not brought to an end by {self.config.actor.max_leases} actors (actor.max_leases)"
            await self._to_learner(dropped(key, DropReason.ACTOR_LOST, detail))
        await self._hand_out()

    # --- learner

    async def _serve_learner(self) -> None:
        while True:
            peer, message, _ = await self._reader.receive(self._learner)
            match message:
                case LearnerState() as state:
                    self._learner_id = peer
                    self._turns.thresholds.restore(state.control)
                    self.admission.start(state.next_group, state.received, state.updates_left)
                case Published() as published:
                    self.admission.trained(published.version, published.trained)
                    await self._published.put(published)
                case GroupsDropped(groups=groups):
                    self.admission.dropped(groups)
                case Evaluate() as request:
                    self.admission.evaluate(request.evaluation, request.episodes)
                case _:
                    self._reader.refuse(peer, f"{type(message).__name__} that no learner sends")
            await self._hand_out()

    async def _apply_weights(self) -> None:
        """New weights into the engines while they generate; then the slots they free."""
        checked = 0  # version whose weights were compared last
        while True:
            published = await self._published.get()
            verify = self.version < 0 or published.version - checked >= self.config.engine.verify_every
            with self._spans.span("load weights", "weights", version=published.version):
                seconds = await self._load(published, verify)
            if verify:
                checked = published.version
            if self.version < 0:
                await self._choose_signal()
            self.version = published.version
            self.admission.applied(published.version)
            if published.last:
                self._finished = True
                await self._finish_training()
            await self._to_learner(Applied(version=published.version, seconds=seconds, control=self._turns.thresholds.state()))
            await self._hand_out()

    async def _load(self, published: Published, verify: bool) -> float:
        deadline = self.config.engine.update_seconds
        if published.transfer is None:
            file = str(weights_file(self._weights_dir, published.version))
            return await self._engines.apply_weights(file, published.version, published.checksum, deadline=deadline, verify=verify)
        if self.version < 0:
            await self._engines.join(self._meeting, deadline=deadline)
        return await self._engines.receive_weights(published.transfer, published.version, deadline=deadline)

    async def _choose_signal(self) -> None:
        """Signals from the tap if it is in all engines, else from streams. Before any episode: the engines have weights, and no turns."""
        control = self.config.control
        if control.signal == "tap" or (control.signal == "auto" and all([await self._signals.answers(engine) for engine in self._engines])):
            return
        if control.signal == "auto":
            log.warning("an engine sends no signals: uncertainty is estimated from streams of log-probs (control.signal)")
        if control.where == "engine" and control.mode not in ("off", "void"):
            log.warning("control.where engine needs the tap: the controller decides")
        self._turns.streamer = Streamer(self._tokens.vocabulary, control.top_j, control.stall_seconds)

    async def _finish_training(self) -> None:
        for key in self.admission.finish():
            await self._to_learner(dropped(key, DropReason.CANCELLED, "the run ended before the episode did"))

    # --- measurement

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._engines.check()
            self._spans.flush()
            await self._send_gauges()

    async def _send_gauges(self) -> None:
        self._last_gauges = self.gauges()
        await self._stats.send(encode(Stats(source="controller", event="gauge", values=self._last_gauges)))

    def gauges(self) -> dict[str, float]:
        """What the controller knows now: counters are totals since its start."""
        counters = self._turns.counters
        beats = [self._gauges.pop(actor) for actor in list(self._gauges)]
        return {
            "generated_tokens": counters.generated_tokens,
            "wasted_tokens": counters.rejected_tokens + counters.late_tokens,
            "wasted_rejected": counters.rejected_tokens,
            "wasted_late": counters.late_tokens,
            "resamples": counters.resamples,
            "interventions": self._signals.interventions + counters.cuts,
            "epsilon": _or_none(self._turns.thresholds.epsilon),
            "eta": _or_none(self._turns.thresholds.eta),
            "turns_in_flight": len(self._turn_tasks),
            "queue_leases": len(self.admission.pending) + len(self.admission.pending_evaluation),
            "episodes_in_flight": len(self.admission.leased),
            "queue_weights": self._published.qsize(),
            "slots_taken": len(self.admission.holding),
            "engines": sum(health is Health.HEALTHY for health, _ in self._engines.standing().values()),
            "actors": len(self._last_seen),
            "signal_frames": self._signals.frames,
            "bad_frames": self._reader.dropped + self._signals.reader.dropped,
            "idle_share_engine": self._idle.share(),
            "loop_lag_controller": self._lag.read().worst,
            **({"loop_lag_actors": max(beat.loop_lag for beat in beats)} if beats else {}),
        }

    # --- sending

    async def _to_actor(self, actor: bytes, message: Message) -> None:
        await self._actors.send_multipart([actor, encode(message)])  # a ROUTER drops what is for a peer that is gone

    async def _to_learner(self, message: Message) -> None:
        if self._learner_id is not None:
            await self._learner.send_multipart([self._learner_id, encode(message)])


def _or_none(threshold: float) -> float | None:
    return None if threshold == NEVER else threshold
