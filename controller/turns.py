"""One turn of an episode: generate, watch, cut, score, and sample again if it stalled."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, nan

import msgspec
import numpy as np

from config import Config
from controller.engine.client import EngineClient, EngineError, Generation
from controller.signals import SignalRouter, padded
from controller.stall import stalled, turn_score
from controller.thinking import ThinkingRule, thinking_settings
from protocol.arrays import FLOAT16, FLOAT32, INT32, UINT8, pack, unpack
from protocol.messages import Attempt, ControlEvent, DropReason, EpisodeKey, StopReason, TurnFailed, TurnRequest, TurnResult

log = logging.getLogger(__name__)

SIGNAL_PATIENCE = 0.25
"""Seconds a finished turn waits for the signals of its last tokens, which travel beside its text."""


@dataclass(frozen=True)
class ThinkTokens:
    """What the controller must know of the tokenizer."""

    open: int  # <think>
    close: int  # </think>
    queue: list[int]  # what is forced to end thinking: "</think>\n<action>"
    end: list[int]  # end-of-turn tokens


@dataclass
class TurnCounters:
    """Totals since the start."""

    generated_tokens: int = 0
    wasted_tokens: int = 0  # in rejected attempts
    resamples: int = 0
    turns: int = 0


class TurnRunner:
    """Runs turns against the engine. One instance serves all episodes; its only state is each episode's last score."""

    def __init__(
        self, config: Config, engine: EngineClient, signals: SignalRouter, tokens: ThinkTokens, version: Callable[[], int]
    ) -> None:
        self._config = config
        self._engine = engine
        self._signals = signals
        self._tokens = tokens
        self._version = version
        self._scores: dict[EpisodeKey, float] = {}
        self._thinking = thinking_settings(config.control)
        self.counters = TurnCounters()

    async def run(self, request: TurnRequest, seed: int) -> TurnResult | TurnFailed:
        """The kept response to the request's prompt. An engine that fails ends the turn, never the process."""
        controlled = self._config.control.mode != "off" and (not request.key.evaluation or self._config.eval.control)
        resamples = self._config.control.max_resamples if controlled and self._config.control.mode in ("t2po", "t2po-turn") else 0
        rejected: list[Attempt] = []
        try:
            while True:
                attempt = await self._sample(request, seed, len(rejected), controlled)
                self.counters.generated_tokens += len(attempt.tokens) // INT32.itemsize
                stall = stalled(attempt.score, self._scores.get(request.key), self._config.control.eta)
                if stall is None or len(rejected) == resamples:
                    break
                self.counters.resamples += 1
                self.counters.wasted_tokens += len(attempt.tokens) // INT32.itemsize
                rejected.append(_with_event(attempt, stall.change, stall.threshold))
        except EngineError as error:
            log.warning("turn %d of %s failed: %s", request.turn, request.key.id, error)
            return TurnFailed(
                key=request.key, attempt=request.attempt, turn=request.turn, reason=DropReason.ENGINE_ERROR, detail=str(error)
            )
        if isfinite(attempt.score):
            self._scores[request.key] = attempt.score
        self.counters.turns += 1
        return TurnResult(key=request.key, attempt=request.attempt, turn=request.turn, kept=attempt, rejected=rejected)

    def forget(self, key: EpisodeKey) -> None:
        """The episode is over."""
        self._scores.pop(key, None)

    async def _sample(self, request: TurnRequest, seed: int, attempt: int, controlled: bool) -> Attempt:
        turn_id = f"{request.key.id}.{request.attempt}.{request.turn}.{attempt}"
        prompt = unpack(request.prompt, INT32).tolist()
        rule = ThinkingRule(self._thinking, self._tokens.open, self._tokens.close)
        steers = controlled and self._config.control.mode in ("budget", "t2po", "t2po-token")
        watched = not request.key.evaluation or controlled
        if watched:
            self._signals.watch(turn_id, rule, steers)
        try:
            generation = await self._engine.generate(
                turn_id,
                prompt,
                max_tokens=min(self._config.sampling.max_tokens, self._config.engine.max_model_len - len(prompt)),
                temperature=self._config.sampling.temperature,
                seed=_turn_seed(seed, request.turn, attempt) if self._config.sampling.seeded else None,
                watched=watched,
                stop_token_ids=self._tokens.end,
                cache_salt=f"v{self._version()}",
            )
            if watched:
                await self._signals.finish(turn_id, len(generation.tokens), SIGNAL_PATIENCE)
        finally:
            self._signals.forget(turn_id)
        return build_attempt(generation, rule if watched else None, steers)


def build_attempt(generation: Generation, rule: ThinkingRule | None, steered: bool) -> Attempt:
    """The record of one response. Forced tokens and tokens without a finite log-prob have mask 0."""
    length = len(generation.tokens)
    log_probs = np.asarray(generation.log_probs, dtype=np.float32)
    mask = np.isfinite(log_probs)
    events = []
    uncertainty = entropy = b""
    if rule is not None:
        forced = np.zeros(length, dtype=bool)
        forced[: min(length, len(rule.forced))] = rule.forced[:length]
        mask &= ~forced
        uncertainty = pack(padded(rule.uncertainty, length), FLOAT16)
        entropy = pack(padded(rule.entropy, length), FLOAT16)
        if rule.intervention is not None and steered:
            i = rule.intervention
            events.append(ControlEvent("intervene", i.reason, i.position, i.value, i.threshold))
    return Attempt(
        tokens=pack(generation.tokens, INT32),
        log_probs=pack(log_probs, FLOAT32),
        mask=pack(mask, UINT8),
        spans=list(generation.spans),
        uncertainty=uncertainty,
        entropy=entropy,
        events=events,
        stop=StopReason.LENGTH if generation.finish_reason == "length" else StopReason.END,
        score=turn_score(rule.uncertainty[:length]) if rule is not None else nan,
        thinking=rule.thinking if rule is not None else 0,
    )


def _with_event(attempt: Attempt, change: float, threshold: float) -> Attempt:
    length = len(attempt.tokens) // INT32.itemsize
    event = ControlEvent("resample", "stalled", length, change, threshold)
    return msgspec.structs.replace(attempt, events=[*attempt.events, event])


def _turn_seed(episode_seed: int, turn: int, attempt: int) -> int:
    """A seed of its own for every response of an episode, 31 bits (the multipliers are odd constants)."""
    return (episode_seed * 1_000_003 + turn * 8_191 + attempt * 131) & 0x7FFFFFFF
