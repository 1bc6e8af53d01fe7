"""Turns in, answers out: what the controller and each further shard do for actors.

They use the engines that are theirs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import NamedTuple

import zmq.asyncio

from config import Job
from controller.admission import episode_seed
from controller.leases import LeaseBook
from controller.responses import turn_failure
from controller.shard_registry import EngineStatus
from controller.signals import SignalRouter
from controller.streaming import StreamingController
from controller.think_tokens import UNCONTROLLED, ThinkTokens, load_think_tokens
from controller.transport import RouterSocket
from controller.turns import TurnRunner
from engine.client import EngineClient
from engine.connection import EngineError
from engine.pool import EnginePool, Health
from engine.weight_update import scale_deadline, transfer_bytes
from envs.base import Environment
from protocol.messages import (
    DropReason,
    EpisodeKey,
    Transfer,
    TurnFailed,
    TurnRequest,
    TurnResult,
    weights_file,
)
from protocol.prompting import load_prompter
from protocol.security import load_keys
from protocol.validation import Limits, validate_turn_request
from telemetry.probes.clocks import IdleClock
from telemetry.probes.spans import SpanFile

log = logging.getLogger(__name__)


class _Caller(NamedTuple):
    """A lease whose turn is asked for, and by which actor.

    With the actor, or one that asks for another's turn would keep that from it.
    """

    actor: bytes
    key: EpisodeKey
    lease_attempt: int


class _Answer(NamedTuple):
    actor: bytes
    since: float  # time.monotonic
    message: TurnResult | TurnFailed

    def is_for(self, actor: bytes, request: TurnRequest) -> bool:
        return self.actor == actor and self.message.turn_index == request.turn_index


class TurnService:
    """Answers each turn once, however often it is asked for."""

    def __init__(
        self,
        job: Job,
        tokens: ThinkTokens,
        leases: LeaseBook,
        actors: RouterSocket,
        engines: EnginePool,
        signals: SignalRouter,
        spans: SpanFile,
    ) -> None:
        self._config = job.config
        self._tokens = tokens
        self._limits = Limits(
            tokens.vocabulary,
            job.config.engine.max_model_len - 1,
            job.config.learner.group_size,
        )
        self._leases = leases
        self._actors = actors
        self.signals = signals
        self.engines = engines
        self.turns = TurnRunner(job.config, engines, signals, tokens)
        self.spans = spans
        self.version = -1
        """Weight version that the engines run; -1 before the first."""
        self._verified_version = 0  # whose weights were compared last
        self._weights_dir = Path(job.weights_dir)
        self._weights_endpoint = job.endpoints.weights
        self._tasks: set[asyncio.Task] = set()
        self._callers: set[_Caller] = set()  # whose turn is under way
        self._answers: dict[tuple[EpisodeKey, int], _Answer] = {}  # the last one of each lease
        self._idle = IdleClock()

    async def close(self) -> None:
        """Let go of turns under way, engines and sockets."""
        await self.cancel_turns()
        await self.engines.close()
        self.signals.close()
        self.spans.close()

    async def cancel_turns(self) -> None:
        """Answer nothing that is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- turns

    async def accept(self, actor: bytes, request: TurnRequest) -> str | None:
        """Begin with a turn, or answer it again.

        Returns what is wrong with the request, if anything is.
        """
        flaw = validate_turn_request(request, self._limits)
        if flaw:
            return flaw
        caller = _Caller(actor, request.key, request.lease_attempt)
        if caller in self._callers:
            return None  # asked again: an answer that takes long is still to come
        answer = self._answers.get((request.key, request.lease_attempt))
        if answer is not None and answer.is_for(actor, request):
            await self._actors.send(actor, answer.message)  # asked again, since it was lost
            return None
        self._callers.add(caller)
        task = asyncio.create_task(self._serve_turn(caller, request))
        self._tasks.add(task)
        self._idle.busy(len(self._tasks))
        task.add_done_callback(self._on_turn_done)
        return None

    def known_leases(self) -> set[tuple[EpisodeKey, int]]:
        """Leases of which something is kept: a turn under way, an answer, a score."""
        under_way = {(caller.key, caller.lease_attempt) for caller in self._callers}
        return under_way | self._answers.keys() | self.turns.scores.keys()

    def forget(self, key: EpisodeKey, lease_attempt: int) -> None:
        """Forget a lease that nobody asks for turns of any more."""
        self.turns.forget(key, lease_attempt)
        self._answers.pop((key, lease_attempt), None)

    def end_lease(self, actor: bytes, key: EpisodeKey, lease_attempt: int) -> None:
        """Forget a lease, since the actor says that it has ended; nothing of another's."""
        answer = self._answers.get((key, lease_attempt))
        if answer is not None and answer.actor == actor:
            self.forget(key, lease_attempt)

    def forget_idle(self, horizon: float) -> None:
        """Forget leases whose last turn was answered before then (seconds of time.monotonic)."""
        idle = [lease for lease, answer in self._answers.items() if answer.since < horizon]
        for key, lease_attempt in idle:
            self.forget(key, lease_attempt)

    def _on_turn_done(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        self._idle.busy(len(self._tasks))
        if not task.cancelled() and task.exception() is not None:
            log.error("a turn failed in the controller", exc_info=task.exception())

    async def _serve_turn(self, caller: _Caller, request: TurnRequest) -> None:
        actor, key, lease_attempt = caller
        answer = turn_failure(request, DropReason.CANCELED, "its lease is no longer in force")
        try:
            if self._leases.allows(actor, request):
                answer = await self._run_turn(request)
                if self._leases.allows(actor, request):
                    self._answers[key, lease_attempt] = _Answer(actor, time.monotonic(), answer)
                else:
                    self.forget(key, lease_attempt)  # it lapsed meanwhile
        finally:
            # before the actor knows, and asks for the next one
            self._callers.discard(caller)
        await self._actors.send(actor, answer)

    async def _run_turn(self, request: TurnRequest) -> TurnResult | TurnFailed:
        try:
            with self.spans.span("turn", request.key.id, turn=request.turn_index):
                seed = episode_seed(self._config.run.seed, request.key)
                return await self.turns.run(request, seed)
        except Exception as error:  # ours to mend; an actor without an answer would wait for ever
            log.exception("a turn failed in the controller")
            return turn_failure(
                request, DropReason.ENGINE_ERROR, f"the controller failed in this turn: {error!r}"
            )

    # --- weights

    async def load_weights(
        self, version: int, checksum: str, transfer: Transfer | None = None
    ) -> float:
        """Load new weights into the engines while they generate.

        Returns the longest time, in seconds, that one of them stood still. Raises EngineError when
        one refuses.
        """
        is_first = self.version < 0
        unverified = version - self._verified_version
        verify = is_first or unverified >= self._config.engine.verify_every
        # while an engine has the new ones and another, or a prefix in it, is of the old
        self.turns.weights_name = f"v{self.version}-v{version}"
        with self.spans.span("load weights", "weights", version=version):
            if transfer is None:
                file = weights_file(self._weights_dir, version)
                deadline = self._update_deadline(_size_of(file))
                seconds = await self.engines.apply_weights(
                    str(file), version, checksum, deadline=deadline, verify=verify
                )
            else:
                deadline = self._update_deadline(transfer_bytes(transfer))
                if is_first:
                    await self.engines.init_nccl_group(self._weights_endpoint, deadline=deadline)
                seconds = await self.engines.receive_weights(transfer, version, deadline=deadline)
        if verify:
            self._verified_version = version
        if is_first:
            await self._choose_signals()
        self.version = version
        self.turns.weights_name = f"v{version}"
        return seconds

    def _update_deadline(self, size_bytes: int) -> float:
        return scale_deadline(self._config.engine.update_seconds, size_bytes)

    async def set_asleep(self, asleep: bool) -> None:
        """Have the engines give up their GPUs' memory, or take it back; turns stand still between.

        Raises EngineError when one refuses.
        """
        if asleep:
            with self.spans.span("put engines to sleep", "weights"):
                await self.engines.sleep()
        else:
            with self.spans.span("wake engines", "weights"):
                await self.engines.wake_up()

    async def _choose_signals(self) -> None:
        """Take signals from the tap if it is in all engines, else from streams.

        Before any episode: the engines have weights, and no turns. Raises EngineError when the tap
        is asked for, and not in an engine.
        """
        control = self._config.control
        if control.signal != "stream":
            silent = await self._engines_without_tap()
            if not silent:
                return
            if control.signal == "tap":
                raise EngineError(
                    f"control.signal tap: no signals come from {', '.join(silent)}; start it "
                    "with our --logits-processors and "
                    f"FORAY_TAP_ENDPOINT={self.signals.endpoint} "
                    "(docs/reference/engine.md), or set control.signal to auto"
                )
            log.warning(
                "an engine sends no signals: uncertainty is estimated from streams of log-probs "
                "(control.signal)"
            )
        if control.decide_in == "engine" and control.mode not in UNCONTROLLED:
            log.warning("control.decide_in engine needs the tap: the controller decides")
        self.turns.streamer = StreamingController(
            self._tokens.vocabulary,
            control.t2po.top_j,
            self._config.engine.progress_timeout_s,
            self.engines.awake_since,
        )

    async def _engines_without_tap(self) -> list[str]:
        """Addresses of the healthy engines that send no signals."""
        return [engine.url for engine in self.engines.healthy() if not await self._has_tap(engine)]

    async def _has_tap(self, engine: EngineClient) -> bool:
        """Find out if the engine sends signals.

        One that fails now is taken to be as the others are.
        """
        async with (
            self.engines.suspect_on_failure(engine),
            asyncio.timeout(self._config.engine.update_seconds),
        ):
            return await self.signals.probe(engine)
        return True

    # --- measurement

    def engine_status(self) -> list[EngineStatus]:
        """Status of each engine."""
        return [(url, str(health), turns) for url, (health, turns) in self.engines.status().items()]

    def gauges(self) -> dict[str, float]:
        """The numbers of now; counters are totals since the start."""
        counters = self.turns.counters
        statuses = self.engines.status().values()
        return {
            "generated_tokens": counters.generated_tokens,
            "wasted_tokens": counters.rejected_tokens + counters.late_tokens,
            "wasted_rejected": counters.rejected_tokens,
            "wasted_late": counters.late_tokens,
            "resamples": counters.resamples,
            "interventions": self.signals.interventions + counters.cuts,
            "turns_in_flight": len(self._tasks),
            "engines": sum(health is Health.HEALTHY for health, _ in statuses),
            "signal_frames": self.signals.frames,
            "bad_frames": self.signals.reader.dropped_frames,
            "idle_share_engine": self._idle.share(),
        }

    def thresholds(self) -> dict[str, float | None]:
        """The thresholds in force; None where there is none, or not yet."""
        thresholds = self.turns.thresholds
        return {"epsilon": thresholds.epsilon, "eta": thresholds.eta}


def _size_of(file: Path) -> int:
    """Return a file's bytes; 0 if it is not there, which engines find out."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def build_turn_service(
    job: Job,
    context: zmq.asyncio.Context,
    shard: int,
    environment: Environment,
    leases: LeaseBook,
    actors: RouterSocket,
) -> TurnService:
    """Make the turn service of a shard (0: the controller), with its engines, signals and spans."""
    config = job.config
    model_dir = Path(job.model_dir)
    prompter = load_prompter(model_dir, config.model.chat_options())
    tokens = load_think_tokens(model_dir, prompter, environment, config.control)
    signals = SignalRouter(
        context,
        job.endpoints.signals[shard],
        tokens,
        config.engine.max_model_len,
        load_keys(config.security.keys),
        config.actor.heartbeat_seconds,
    )
    engines = EnginePool(
        job.endpoints.engines_of(shard), config.engine.start_seconds, job.engine_key, job.run_id
    )
    process = f"controller-{shard}" if shard else "controller"
    spans = SpanFile(Path(job.run_dir), process)
    return TurnService(job, tokens, leases, actors, engines, signals, spans)
