"""One turn of an episode: generate, watch, cut, score, and sample again if it stalled."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

from config import Config
from controller.attempts import NOTHING, build_attempt, noted
from controller.engine.answers import Generation
from controller.engine.client import EngineClient, EngineError, Sampling
from controller.progress import TurnStuck
from controller.rules.thinking import NEVER, DelegatedRule, ThinkingRule, ThinkingSettings
from controller.rules.turn import LOOP, STUCK, change, stalled
from controller.signals import Acts, SignalRouter
from controller.stream import Streamer
from controller.think_tokens import ThinkTokens
from controller.thresholds import Thresholds
from protocol.arrays import INT32, unpack
from protocol.messages import Attempt, DropReason, EpisodeKey, StopReason, TurnFailed, TurnRequest, TurnResult

log = logging.getLogger(__name__)

SIGNAL_PATIENCE = 0.25
"""Seconds a finished turn waits for the signals of its last tokens, which travel beside its text."""


@dataclass
class TurnCounters:
    """Totals since the start."""

    generated_tokens: int = 0
    wasted_tokens: int = 0  # in rejected attempts
    resamples: int = 0
    cuts: int = 0  # by the streamer; the tap's are the signal router's
    turns: int = 0


class TurnRunner:
    """Runs turns against the engine. One instance serves all episodes; its state is each episode's last score, and the thresholds."""

    def __init__(
        self, config: Config, engine: EngineClient, signals: SignalRouter, tokens: ThinkTokens, version: Callable[[], int]
    ) -> None:
        self._config = config
        self._engine = engine
        self._signals = signals
        self._tokens = tokens
        self._version = version
        self._scores: dict[EpisodeKey, float] = {}
        self.thresholds = Thresholds(config.control)
        self.streamer: Streamer | None = None
        """Set where the engine has no tap."""
        self.counters = TurnCounters()

    async def run(self, request: TurnRequest, seed: int) -> TurnResult | TurnFailed:
        """The kept response to the request's prompt. An engine that fails ends the turn, never the process."""
        control = self._config.control
        controlled = control.mode not in ("off", "void") and (not request.key.evaluation or self._config.eval.control)
        resamples = control.max_resamples if controlled and control.mode in ("t2po", "t2po-turn") else 0
        attempts: list[Attempt] = []
        try:
            while True:
                eta = self.thresholds.eta
                try:
                    attempt = await self._sample(request, seed, len(attempts), controlled, eta if resamples else NEVER)
                except TurnStuck:
                    if len(attempts) == resamples:
                        raise
                    self.counters.resamples += 1
                    attempts.append(noted(NOTHING, "resample", STUCK))
                    continue
                self.counters.generated_tokens += attempt.length
                gamma = change(attempt.score, self._scores.get(request.key))
                stall = stalled(gamma, eta, zero_counts=control.score != "code") if resamples else None
                if not attempts and not request.key.evaluation:
                    self.thresholds.observe_turn(gamma, eta, stall is not None)
                if resamples and attempt.stop is StopReason.REPETITION:
                    stall = LOOP
                if stall is None:
                    break
                if len(attempts) == resamples:
                    attempt = noted(attempt, "keep", stall)
                    break
                self.counters.resamples += 1
                self.counters.wasted_tokens += attempt.length
                attempts.append(noted(attempt, "resample", stall))
        except (EngineError, TurnStuck) as error:
            log.warning("turn %d of %s failed: %s", request.turn, request.key.id, error)
            return TurnFailed(
                key=request.key, attempt=request.attempt, turn=request.turn, reason=DropReason.ENGINE_ERROR, detail=str(error)
            )
        if isfinite(attempt.score):
            self._scores[request.key] = attempt.score
        self.counters.turns += 1
        return TurnResult(key=request.key, attempt=request.attempt, turn=request.turn, kept=attempt, rejected=attempts)

    def forget(self, key: EpisodeKey) -> None:
        """The episode is over."""
        self._scores.pop(key, None)

    async def _sample(self, request: TurnRequest, seed: int, attempt: int, controlled: bool, eta: float) -> Attempt:
        control = self._config.control
        turn_id = f"{request.key.id}.{request.attempt}.{request.turn}.{attempt}"
        prompt = unpack(request.prompt, INT32).tolist()
        steered = controlled and control.mode in ("budget", "t2po", "t2po-token")
        delegated = DelegatedRule(self._settings(), self._tokens.open, self._tokens.close, self._tokens.queue)
        rule = delegated.begin()  # with the rule in the engine, too: it sees the same and decides the same, for the record
        watched = not request.key.evaluation or controlled
        acts: Acts = "no" if not steered else "steer" if control.where == "controller" else "engine"
        sampling = Sampling(
            max_tokens=min(self._config.sampling.max_tokens, self._config.engine.max_model_len - len(prompt)),
            cache_salt=f"v{self._version()}",
            temperature=self._config.sampling.temperature,
            seed=_turn_seed(seed, request.turn, attempt) if self._config.sampling.seeded else None,
            stop_token_ids=self._tokens.end,
            repeats=control.repeats if controlled and control.mode in ("t2po", "t2po-turn") else 0,
        )
        if watched and self.streamer is not None:
            turn = await self.streamer.generate(
                turn_id, prompt, sampling, delegated, rule, steers=steered, stall_seconds=control.stall_seconds
            )
            generation = turn.generation
            self.counters.generated_tokens += turn.wasted
            self.counters.wasted_tokens += turn.wasted
            self.counters.cuts += turn.cut
        else:
            generation = await self._tapped(turn_id, prompt, sampling, rule, delegated, acts if watched else None)
        if watched and not request.key.evaluation:
            self.thresholds.observe_thinking(rule)
        return build_attempt(generation, rule if watched else None, steered, control.turn_mean, control.turn_skip, eta)

    async def _tapped(
        self, turn_id: str, prompt: list[int], sampling: Sampling, rule: ThinkingRule, delegated: DelegatedRule, acts: Acts | None
    ) -> Generation:
        """A response whose signals come from the tap beside it. `acts` None: nobody watches it."""
        if acts is None:
            return await self._engine.generate(turn_id, prompt, sampling, watched=False)
        self._signals.watch(turn_id, rule, acts)
        try:
            call = self._engine.generate(turn_id, prompt, sampling, watched=True, rule=delegated if acts == "engine" else None)
            generation = await self._signals.generated(turn_id, call, self._config.control.stall_seconds)
            await self._signals.finish(turn_id, len(generation.tokens), SIGNAL_PATIENCE)
        finally:
            self._signals.forget(turn_id)
        return generation

    def _settings(self) -> ThinkingSettings:
        """The rule for a turn that begins now."""
        c = self._config.control
        return ThinkingSettings(
            c.score, c.alpha, self._tokens.vocabulary, c.statistic, c.window, self.thresholds.epsilon, c.min_thinking, c.max_thinking
        )


def _turn_seed(episode_seed: int, turn: int, attempt: int) -> int:
    """A seed of its own for every response of an episode, 31 bits (the multipliers are odd constants)."""
    return (episode_seed * 1_000_003 + turn * 8_191 + attempt * 131) & 0x7FFFFFFF
