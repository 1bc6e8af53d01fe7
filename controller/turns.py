"""One turn of an episode: generate, watch, cut, score, and sample again if it stalled."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import isfinite
from secrets import token_hex

from config import Config
from controller.endings import failed
from controller.progress import NoProgressError
from controller.responses import NOTHING, build_response, noted
from controller.rules.early_stop import EarlyStopTest
from controller.rules.thinking import NEVER, DelegatedRule, ThinkingSettings
from controller.rules.turn import LOOP, STUCK, Stall, change, stalled
from controller.signals import InterventionMode, SignalRouter, Watch
from controller.streaming import StreamingController
from controller.think_tokens import ThinkTokens
from controller.thresholds import Thresholds
from engine.client import EngineClient, Sampling
from engine.connection import EngineBusy, EngineError, NoNumbers
from engine.pool import EnginePool
from engine.responses import Generation
from protocol.arrays import INT32, unpack
from protocol.messages import (
    ControlEvent,
    DropReason,
    EpisodeKey,
    Response,
    StopReason,
    TurnFailed,
    TurnRequest,
    TurnResult,
)

log = logging.getLogger(__name__)

DECISIONS = 20
"""That are kept to be looked at."""
MAX_LOST = 2
"""Times a turn is asked for again after an engine failed with it.

One that ends every engine it meets is not to end them all.
"""
SIGNAL_PATIENCE = 0.25
"""Seconds a finished turn waits for the signals of its last tokens, which travel beside its
text."""


@dataclass
class TurnCounters:
    """Totals since the start."""

    generated_tokens: int = 0
    rejected_tokens: int = 0  # in rejected attempts
    late_tokens: int = 0  # past the cut of a stream
    resamples: int = 0
    cuts: int = 0  # by the streamer; the tap's are the signal router's
    turns: int = 0


@dataclass
class _Tries:
    """What became of the tries of one turn that came to nothing."""

    number: int = 0
    lost: int = 0  # those after which a turn is given up at last
    waited_seconds: float = 0.0  # for busy engines
    engine: EngineClient | None = None  # of the last one


class TurnRunner:
    """Runs turns against the engines.

    One instance serves all episodes; its state is each episode's last score, and the thresholds.
    """

    def __init__(
        self,
        config: Config,
        engines: EnginePool,
        signals: SignalRouter,
        tokens: ThinkTokens,
        weights: Callable[[], str],
    ) -> None:
        """`weights`: a name of those that run; turns of other names share no prefixes."""
        self._config = config
        self._engines = engines
        self._signals = signals
        self._tokens = tokens
        self._weights = weights
        self._nonce = token_hex(4)
        """In all names that an engine hears: it may outlive us, and keeps what it knew of turns and
        prefixes of the same name."""
        self._scores: dict[tuple[EpisodeKey, int], float] = {}  # of each lease
        self.thresholds = Thresholds(config.control)
        self.streamer: StreamingController | None = None
        """Set where the engine has no tap."""
        self.counters = TurnCounters()
        self.decisions: deque[tuple[str, ControlEvent]] = deque(maxlen=DECISIONS)
        """(Turn, what was decided), the latest ones."""

    async def run(self, request: TurnRequest, seed: int) -> TurnResult | TurnFailed:
        """The kept response to the request's prompt.

        An engine that fails ends the turn, never the process.
        """
        control = self._config.control
        controlled = control.mode not in ("off", "void") and (
            not request.key.evaluation or self._config.eval.control
        )
        resamples = (
            control.max_resamples if controlled and control.mode in ("t2po", "t2po-turn") else 0
        )
        lease = (request.key, request.attempt)
        before = self._scores.get(lease)
        tries = _Tries()
        attempts: list[Response] = []
        try:
            while True:
                eta = self.thresholds.eta if resamples else NEVER
                early = self._early(before, eta) if len(attempts) < resamples else None
                turn_id = f"{request.key.id}.{request.attempt}.{request.turn}.{len(attempts)}.{tries.number}.{self._nonce}"
                turn_seed = _turn_seed(seed, request.turn, len(attempts))
                try:
                    async with self._engines.acquire(but=tries.engine) as engine:
                        attempt = await self._sample(
                            engine, turn_id, request, turn_seed, controlled, eta, early
                        )
                except (EngineError, NoProgressError) as error:
                    await self._prepare_another(tries, engine, error)
                    log.info("turn %s is sampled again: %s", turn_id, error)
                    if isinstance(error, NoProgressError):
                        self.counters.resamples += 1
                        attempts.append(noted(NOTHING, "resample", STUCK))
                    continue
                self.counters.generated_tokens += attempt.length
                gamma = change(attempt.score, before)
                stall = self._stall(attempt, gamma, eta) if resamples else None
                if not attempts and not request.key.evaluation:
                    self.thresholds.observe_turn(
                        gamma, eta, stall is not None and (stall is not LOOP or gamma < eta)
                    )
                if stall is None:
                    break
                if len(attempts) >= resamples:
                    attempt = noted(attempt, "keep", stall)
                    break
                self.counters.resamples += 1
                self.counters.rejected_tokens += attempt.length
                attempts.append(noted(attempt, "resample", stall))
        except (EngineError, NoProgressError) as error:
            log.warning("turn %d of %s failed: %s", request.turn, request.key.id, error)
            return failed(request, DropReason.ENGINE_ERROR, str(error))
        if isfinite(attempt.score):
            self._scores[lease] = attempt.score
        self.counters.turns += 1
        name = f"{request.key.id}, turn {request.turn}"
        self.decisions.extend(
            (name, event) for sampled in (*attempts, attempt) for event in sampled.events
        )
        return TurnResult(
            key=request.key,
            attempt=request.attempt,
            turn=request.turn,
            kept=attempt,
            rejected=attempts,
        )

    async def _prepare_another(
        self, tries: _Tries, engine: EngineClient, error: EngineError | NoProgressError
    ) -> None:
        """Returns when the turn can be tried again, after a try that ended in `error`.

        Raises `error` if it is to be given up.

        Each try has a name of its own in the engine: one whose connection was lost may go on there,
        and what it signals is nobody's.
        """
        tries.number += 1
        tries.engine = engine
        if (
            isinstance(error, EngineBusy)
            and tries.waited_seconds + error.seconds <= self._config.control.stall_seconds
        ):
            tries.waited_seconds += error.seconds
            await asyncio.sleep(error.seconds)
            return
        if isinstance(error, NoNumbers):
            await self._engines.doubt(engine, str(error))
        else:
            self._engines.suspect(engine, str(error))
        tries.lost += 1
        if tries.lost > MAX_LOST:
            raise error

    def forget(self, key: EpisodeKey, attempt: int) -> None:
        """The episode is over, as far as this lease of it goes."""
        self._scores.pop((key, attempt), None)

    def _stall(self, attempt: Response, gamma: float, eta: float) -> Stall | None:
        """Why the attempt is to be sampled again."""
        if attempt.stop is StopReason.REPETITION:
            return LOOP
        if attempt.stop is StopReason.EARLY:
            return Stall(gamma, eta, "early")
        return stalled(gamma, eta, zero_counts=self._config.control.score != "code")

    def _early(self, before: float | None, eta: float) -> EarlyStopTest | None:
        control = self._config.control
        if not control.early_stall or before is None or eta == NEVER:
            return None
        return EarlyStopTest(
            control.early_stall,
            before,
            eta,
            self._config.sampling.max_tokens,
            control.turn_mean,
            control.turn_skip,
        )

    async def _sample(
        self,
        engine: EngineClient,
        turn_id: str,
        request: TurnRequest,
        seed: int,
        controlled: bool,
        eta: float,
        early: EarlyStopTest | None,
    ) -> Response:
        control = self._config.control
        prompt = unpack(request.prompt, INT32).tolist()
        steered = controlled and control.mode in ("budget", "t2po", "t2po-token")
        delegated = DelegatedRule(
            self._settings(), self._tokens.open, self._tokens.close, self._tokens.queue
        )
        rule = (
            delegated.begin()
        )  # with the rule in the engine, too: it sees the same and decides the same, for the record
        recorded = (
            not request.key.evaluation or controlled
        )  # of others, signals say only that the engine goes on
        sampling = Sampling(
            max_tokens=min(
                self._config.sampling.max_tokens, self._config.engine.max_model_len - len(prompt)
            ),
            cache_salt=f"{self._nonce}-{self._weights()}",
            temperature=self._config.sampling.temperature,
            seed=seed if self._config.sampling.seeded else None,
            stop_token_ids=self._tokens.end,
            repeats=control.repeats if controlled and control.mode in ("t2po", "t2po-turn") else 0,
        )
        ended_early = False
        if self.streamer is not None:
            turn = await self.streamer.generate(
                engine,
                turn_id,
                prompt,
                sampling,
                rule,
                self._tokens.queue,
                steers=steered,
                early=early,
            )
            generation = turn.generation
            ended_early = turn.early
            self.counters.generated_tokens += turn.wasted
            self.counters.late_tokens += turn.wasted
            self.counters.cuts += turn.cut
        else:
            acts: InterventionMode = (
                "no" if not steered else "steer" if control.where == "controller" else "engine"
            )
            call = engine.generate(
                turn_id,
                prompt,
                sampling,
                watched=True,
                rule=delegated if acts == "engine" else None,
            )
            generation = await self._tapped(turn_id, call, Watch(rule, acts, early))
            last = (
                len(generation.tokens) - 1
            )  # a turn that ends by itself before the steer comes is judged as it is
            ended_early = (
                early is not None
                and early.position is not None
                and rule.forced[last : last + 1] == [True]
            )
            if (
                generation.finish_reason == "abort"
            ):  # as an engine ends its turns that is told to end; the streamer, too, raises then
                raise EngineError(
                    f"the engine at {engine.url} ended turn {turn_id}, which nobody asked for"
                )
        if not all(map(isfinite, generation.log_probs)):
            raise NoNumbers("the model computed NaN or infinity for a token of a response")
        self._engines.check_weights(engine, generation.spans)
        if not request.key.evaluation:
            self.thresholds.observe_thinking(rule)
        return build_response(
            generation,
            rule if recorded else None,
            steered,
            control.turn_mean,
            control.turn_skip,
            eta,
            ended_early,
        )

    async def _tapped(self, turn_id: str, call: Awaitable[Generation], watch: Watch) -> Generation:
        """The response that `call` generates, once its signals, which come from the tap beside it,
        have arrived."""
        self._signals.watch(turn_id, watch)
        try:
            generation = await self._signals.generated(
                turn_id, call, self._config.control.stall_seconds
            )
            await self._signals.finish(turn_id, len(generation.tokens), SIGNAL_PATIENCE)
            if watch.failure is not None:
                raise watch.failure
        finally:
            self._signals.forget(turn_id)
        return generation

    def _settings(self) -> ThinkingSettings:
        """The rule for a turn that begins now."""
        c = self._config.control
        return ThinkingSettings(
            c.score,
            c.alpha,
            self._tokens.vocabulary,
            c.statistic,
            c.window,
            self.thresholds.epsilon,
            c.min_thinking,
            c.max_thinking,
        )


def _turn_seed(episode_seed: int, turn: int, attempt: int) -> int:
    """A seed of its own for every response of an episode, 31 bits (the multipliers are odd
    constants)."""
    return (episode_seed * 1_000_003 + turn * 8_191 + attempt * 131) & 0x7FFFFFFF
