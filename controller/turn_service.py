"""Turns in, answers out: what the controller and each further shard do for actors, with the engines
that are theirs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import zmq.asyncio

from config import Config, Job
from controller.admission import episode_seed
from controller.responses import turn_failure
from controller.signals import SignalRouter
from controller.streaming import StreamingController
from controller.think_tokens import think_tokens
from controller.turns import TurnRunner
from engine.client import EngineClient
from engine.connection import EngineError
from engine.pool import EnginePool, Health
from envs.base import Environment
from protocol.messages import (
    DropReason,
    EpisodeKey,
    Message,
    Transfer,
    TurnFailed,
    TurnRequest,
    TurnResult,
    weights_file,
)
from protocol.security import CurveKeys
from protocol.validation import Limits, validate_turn_request
from telemetry.probes.clocks import IdleClock
from telemetry.probes.spans import SpanFile

log = logging.getLogger(__name__)

_Lease = tuple[bytes, EpisodeKey, int]
"""Actor, episode, attempt: with the actor, or one that asks for another's turn would keep that from
it."""


class _Answer(NamedTuple):
    actor: bytes
    since: float  # time.monotonic
    message: TurnResult | TurnFailed


class TurnService:
    """Answers each turn once, however often it is asked for."""

    def __init__(
        self,
        job: Job,
        context: zmq.asyncio.Context,
        keys: CurveKeys | None,
        shard: int,
        environment: Environment,
        holds: Callable[[bytes, TurnRequest], bool],
        send: Callable[[bytes, Message], Awaitable[None]],
    ) -> None:
        """`holds`: whether the actor has a lease in force for what it requests; `send`: a message
        to an actor."""
        self._config: Config = job.config
        self._tokens = think_tokens(Path(job.model_dir), environment, self._config.control)
        self._bounds = Limits(
            self._tokens.vocabulary,
            self._config.engine.max_model_len - 1,
            self._config.learner.group_size,
        )
        self._holds = holds
        self._send = send
        self.signals = SignalRouter(
            context,
            job.endpoints.signals[shard],
            self._tokens,
            self._config.engine.max_model_len,
            keys,
            self._config.actor.heartbeat_seconds,
        )
        self.engines = EnginePool(
            job.endpoints.engines_of(shard),
            self._config.engine.start_seconds,
            job.engine_key,
            job.run_id,
        )
        self.turns = TurnRunner(self._config, self.engines, self.signals, self._tokens)
        self.version = -1
        """Of the weights that the engines run."""
        self._verified = 0  # version whose weights were compared last
        self._weights_dir = Path(job.weights_dir)
        self._meeting = job.endpoints.weights
        self._tasks: set[asyncio.Task] = set()
        self._asked: set[_Lease] = set()  # whose turn is under way
        self._answers: dict[tuple[EpisodeKey, int], _Answer] = {}  # the last one of each lease
        self._idle = IdleClock()
        self.spans = SpanFile(Path(job.run_dir), f"controller-{shard}" if shard else "controller")

    async def close(self) -> None:
        """Let go of turns under way, engines and sockets."""
        await self.cancel()
        await self.engines.close()
        self.signals.close()
        self.spans.close()

    async def cancel(self) -> None:
        """Answer nothing that is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- turns

    async def take(self, actor: bytes, request: TurnRequest) -> str:
        """Begin with a turn. What is wrong with the request, if anything is."""
        lease = (actor, request.key, request.lease_attempt)
        if flaw := validate_turn_request(request, self._bounds):
            return flaw
        if lease in self._asked:
            return ""  # asked again: an answer that takes long is still to come
        last = self._answers.get(lease[1:])
        if (
            last is not None
            and last.actor == actor
            and last.message.turn_index == request.turn_index
        ):
            await self._send(actor, last.message)  # asked again, since it was lost
            return ""
        self._asked.add(lease)
        task = asyncio.create_task(self._turn(actor, request))
        self._tasks.add(task)
        self._idle.busy(len(self._tasks))
        task.add_done_callback(self._ended)
        return ""

    def forget(self, key: EpisodeKey, attempt: int) -> None:
        """Nobody asks for turns of this lease any more."""
        self.turns.forget(key, attempt)
        self._answers.pop((key, attempt), None)

    def ended(self, actor: bytes, key: EpisodeKey, attempt: int) -> None:
        """The actor says so; of what is another's, nothing is forgotten."""
        last = self._answers.get((key, attempt))
        if last is not None and last.actor == actor:
            self.forget(key, attempt)

    def forget_before(self, horizon: float) -> None:
        """Nor of those whose last turn was answered before then (seconds of time.monotonic)."""
        for key, attempt in [
            lease for lease, answer in self._answers.items() if answer.since < horizon
        ]:
            self.forget(key, attempt)

    def _ended(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        self._idle.busy(len(self._tasks))
        if not task.cancelled() and task.exception() is not None:
            log.error("a turn failed in the controller", exc_info=task.exception())

    async def _turn(self, actor: bytes, request: TurnRequest) -> None:
        key = request.key
        attempt = request.lease_attempt
        answer = turn_failure(request, DropReason.CANCELLED, "its lease is no longer in force")
        try:
            if self._holds(actor, request):
                answer = await self._answer(request)
                if self._holds(actor, request):
                    self._answers[key, attempt] = _Answer(actor, time.monotonic(), answer)
                else:
                    self.forget(key, attempt)  # it lapsed meanwhile
        finally:
            self._asked.discard(
                (actor, key, attempt)
            )  # before the actor knows, and asks for the next one
        await self._send(actor, answer)

    async def _answer(self, request: TurnRequest) -> TurnResult | TurnFailed:
        try:
            with self.spans.span("turn", request.key.id, turn=request.turn_index):
                return await self.turns.run(
                    request, episode_seed(self._config.run.seed, request.key)
                )
        except Exception as error:  # ours to mend; an actor without an answer would wait for ever
            log.exception("a turn failed in the controller")
            return turn_failure(
                request, DropReason.ENGINE_ERROR, f"the controller failed in this turn: {error!r}"
            )

    # --- weights

    async def load(self, version: int, checksum: str, transfer: Transfer | None = None) -> float:
        """New weights into the engines while they generate; the longest time that one of them stood
        still, in seconds. Raises EngineError when one refuses."""
        deadline = self._config.engine.update_seconds
        verify = self.version < 0 or version - self._verified >= self._config.engine.verify_every
        # while an engine has the new ones and another, or a prefix in it, is of the old
        self.turns.weights_name = f"v{self.version}-v{version}"
        with self.spans.span("load weights", "weights", version=version):
            if transfer is None:
                file = str(weights_file(self._weights_dir, version))
                seconds = await self.engines.apply_weights(
                    file, version, checksum, deadline=deadline, verify=verify
                )
            else:
                if self.version < 0:
                    await self.engines.init_nccl_group(self._meeting, deadline=deadline)
                seconds = await self.engines.receive_weights(transfer, version, deadline=deadline)
        if verify:
            self._verified = version
        if self.version < 0:
            await self._choose_signal()
        self.version = version
        self.turns.weights_name = f"v{version}"
        return seconds

    async def _choose_signal(self) -> None:
        """Signals from the tap if it is in all engines, else from streams.

        Before any episode: the engines have weights, and no turns. Raises EngineError when the tap
        is asked for, and not in an engine.
        """
        control = self._config.control
        if control.signal != "stream":
            silent = [
                engine.url
                for engine in self.engines.healthy()
                if not await self._signals_from(engine)
            ]
            if not silent:
                return
            if control.signal == "tap":
                raise EngineError(
                    f"control.signal tap: no signals come from {', '.join(silent)}; start it "
                    "with our --logits-processors and "
                    f"FORAY_TAP_ENDPOINT={self.signals.endpoint} "
                    "(docs/reference/engine.md), or set "
                    "control.signal to auto"
                )
            log.warning(
                "an engine sends no signals: uncertainty is estimated from streams of log-probs "
                "(control.signal)"
            )
        if control.decide_in == "engine" and control.mode not in ("off", "void"):
            log.warning("control.decide_in engine needs the tap: the controller decides")
        self.turns.streamer = StreamingController(
            self._tokens.vocabulary, control.top_j, self._config.engine.progress_timeout_s
        )

    async def _signals_from(self, engine: EngineClient) -> bool:
        """Whether it sends signals; one that fails now is taken to be as the others are."""
        async with (
            self.engines.suspect_on_failure(engine),
            asyncio.timeout(self._config.engine.update_seconds),
        ):
            return await self.signals.probe(engine)
        return True

    # --- measurement

    def standing(self) -> list[tuple[str, str, int]]:
        """Address, health and turns of each engine."""
        return [(url, str(health), turns) for url, (health, turns) in self.engines.status().items()]

    def gauges(self) -> dict[str, float]:
        """What is known now: counters are totals since the start."""
        counters = self.turns.counters
        return {
            "generated_tokens": counters.generated_tokens,
            "wasted_tokens": counters.rejected_tokens + counters.late_tokens,
            "wasted_rejected": counters.rejected_tokens,
            "wasted_late": counters.late_tokens,
            "resamples": counters.resamples,
            "interventions": self.signals.interventions + counters.cuts,
            "turns_in_flight": len(self._tasks),
            "engines": sum(
                health is Health.HEALTHY for health, _ in self.engines.status().values()
            ),
            "signal_frames": self.signals.frames,
            "bad_frames": self.signals.reader.dropped_frames,
            "idle_share_engine": self._idle.share(),
        }

    def thresholds(self) -> dict[str, float | None]:
        """Those in force; None where there is none, or not yet."""
        thresholds = self.turns.thresholds
        return {"epsilon": thresholds.epsilon, "eta": thresholds.eta}
