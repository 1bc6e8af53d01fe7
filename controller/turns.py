"""One turn of an episode: generate, watch, cut, score, and sample again if it stalled."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field
from math import isfinite
from secrets import token_hex

from config import Config
from controller.responses import (
    EMPTY_RESPONSE,
    ControlRecord,
    build_response,
    turn_failure,
    with_event,
)
from controller.rules.early_stop import EarlyStopTest
from controller.rules.stall import LOOP, STUCK, Stall, find_stall, score_change
from controller.rules.thinking import RuleSpec, ThinkingRule
from controller.signals import InterventionMode, NoProgressError, SignalRouter, WatchedTurn
from controller.streaming import StreamControl, StreamingController
from controller.think_tokens import STEERED, UNCONTROLLED, ThinkTokens, build_rule_spec
from controller.thresholds import RESAMPLED_BY_ETA, Thresholds
from engine.client import EngineClient, Sampling
from engine.connection import EngineBusy, EngineError, NonFiniteError
from engine.pool import EnginePool
from engine.responses import Generation
from protocol.arrays import INT32, finite_or_none, unpack
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

RECENT_DECISIONS = 20
"""How many recent control decisions the dashboard shows."""
MAX_RETRIES = 2
"""How often a turn is asked for again after an engine failed with it.

One that ends every engine it meets is not to end them all.
"""
SIGNAL_PATIENCE = 0.25
"""Seconds a finished turn waits for the signals of its last tokens.

They travel beside its text.
"""


@dataclass
class TurnCounters:
    """Totals since the start."""

    generated_tokens: int = 0
    rejected_tokens: int = 0  # in rejected responses
    late_tokens: int = 0  # past the cut of a stream
    resamples: int = 0
    cuts: int = 0  # by the streamer; the tap's are the signal router's
    turns: int = 0


@dataclass
class _Turn:
    """A turn in the making."""

    request: TurnRequest
    episode_seed: int
    controlled: bool  # by the modes of control.mode
    max_resamples: int
    previous_score: float | None  # of the kept turn before
    rejected: list[Response] = field(default_factory=list)
    failures: int = 0  # calls to an engine that came to nothing
    errors: int = 0  # those of them that count against MAX_RETRIES
    busy_seconds: float = 0.0  # waited for busy engines
    last_engine: EngineClient | None = None  # that failed with it

    @property
    def lease(self) -> tuple[EpisodeKey, int]:
        return self.request.key, self.request.lease_attempt

    @property
    def may_resample(self) -> bool:
        return len(self.rejected) < self.max_resamples

    @property
    def seed(self) -> int:
        """Seed of the next response, 31 bits: one of its own for every response of an episode.

        The multipliers are odd constants.
        """
        number = self.request.turn_index * 8_191 + len(self.rejected) * 131
        return (self.episode_seed * 1_000_003 + number) & 0x7FFFFFFF

    def response_id(self, nonce: str) -> str:
        """Name the next response, for the engine.

        Each try has a name of its own there: one whose connection was lost may go on, and what it
        signals is nobody's.
        """
        request = self.request
        numbers = (
            f"{request.lease_attempt}.{request.turn_index}.{len(self.rejected)}.{self.failures}"
        )
        return f"{request.key.id}.{numbers}.{nonce}"


@dataclass(frozen=True)
class _Call:
    """A response that is asked of an engine, and how control treats it."""

    response_id: str
    prompt: list[int]
    sampling: Sampling
    spec: RuleSpec
    # With the rule in the engine, too: this one sees and decides the same, for the record.
    rule: ThinkingRule
    steered: bool  # interventions of the rule are carried out
    early_test: EarlyStopTest | None


class TurnRunner:
    """Runs turns against the engines.

    One instance serves all episodes; its state is each episode's last score, and the thresholds.
    """

    def __init__(
        self, config: Config, engines: EnginePool, signals: SignalRouter, tokens: ThinkTokens
    ) -> None:
        self._config = config
        self._engines = engines
        self._signals = signals
        self._tokens = tokens
        self._nonce = token_hex(4)
        """Part of all names that an engine hears.

        It may outlive us, and keeps what it knew of turns and prefixes of the same name.
        """
        self.scores: dict[tuple[EpisodeKey, int], float] = {}
        """Score of the last kept turn of each lease (episode, number)."""
        self.weights_name = ""
        """Name of the weights that run; turns of other names share no prefixes."""
        self.thresholds = Thresholds(config.control)
        self.streamer: StreamingController | None = None
        """Set where the engine has no tap."""
        self.counters = TurnCounters()
        self.decisions: deque[tuple[str, ControlEvent]] = deque(maxlen=RECENT_DECISIONS)
        """The latest decisions: (turn, event)."""

    async def run(self, request: TurnRequest, seed: int) -> TurnResult | TurnFailed:
        """Answer the request with the response that is kept.

        `seed`: of the episode. An engine that fails ends the turn, never the process.
        """
        turn = self._begin(request, seed)
        try:
            kept = await self._sample_until_kept(turn)
        except (EngineError, NoProgressError) as error:
            number = request.turn_index + 1
            log.warning("turn %d of %s failed: %s", number, request.key.id, error)
            return turn_failure(request, DropReason.ENGINE_ERROR, str(error))
        self._note_end(turn, kept)
        return TurnResult(
            key=request.key,
            lease_attempt=request.lease_attempt,
            turn_index=request.turn_index,
            kept=kept,
            rejected=turn.rejected,
        )

    def forget(self, key: EpisodeKey, lease_attempt: int) -> None:
        """Forget the episode, which is over as far as this lease of it goes."""
        self.scores.pop((key, lease_attempt), None)

    # --- the steps of a turn

    def _begin(self, request: TurnRequest, episode_seed: int) -> _Turn:
        control = self._config.control
        controlled = control.mode not in UNCONTROLLED and (
            not request.key.evaluation or self._config.eval.control
        )
        max_resamples = 0
        if controlled and control.mode in RESAMPLED_BY_ETA:
            max_resamples = control.t2po.max_resamples
        previous_score = self.scores.get((request.key, request.lease_attempt))
        return _Turn(request, episode_seed, controlled, max_resamples, previous_score)

    async def _sample_until_kept(self, turn: _Turn) -> Response:
        """Sample responses until one is not stalled, or no further one is allowed."""
        while True:
            eta = self._eta_in_force(turn)
            response = await self._try_sample(turn, eta)
            if response is None:
                continue
            self.counters.generated_tokens += response.length
            stall = self._judge(turn, response, eta)
            if stall is None:
                return response
            if not turn.may_resample:
                return with_event(response, "keep", stall)
            self.counters.resamples += 1
            self.counters.rejected_tokens += response.length
            turn.rejected.append(with_event(response, "resample", stall))

    def _eta_in_force(self, turn: _Turn) -> float | None:
        """Return the threshold that the turn's change is held to; None where there is no change.

        The first turn of an episode has none to be compared with.
        """
        if not turn.max_resamples or turn.previous_score is None:
            return None
        return self.thresholds.eta

    async def _try_sample(self, turn: _Turn, eta: float | None) -> Response | None:
        """Sample one response; None when an engine failed with it, and another try is allowed."""
        response_id = turn.response_id(self._nonce)
        early_test = self._early_test(turn, eta)
        try:
            async with self._engines.acquire(but=turn.last_engine) as engine:
                return await self._sample(engine, response_id, turn, eta, early_test)
        except (EngineError, NoProgressError) as error:
            await self._prepare_retry(turn, engine, error)
            log.info("turn %s is sampled again: %s", response_id, error)
            if isinstance(error, NoProgressError):
                self.counters.resamples += 1
                turn.rejected.append(with_event(EMPTY_RESPONSE, "resample", STUCK))
            return None

    def _judge(self, turn: _Turn, response: Response, eta: float | None) -> Stall | None:
        """Find out why the response is to be sampled again; None: it is not.

        The first one of a turn counts for the thresholds.
        """
        gamma = score_change(finite_or_none(response.score), turn.previous_score)
        stall = self._stall(response, gamma, eta) if turn.max_resamples else None
        if not turn.rejected and not turn.request.key.evaluation:
            is_stalled = stall is not None
            if stall is LOOP:  # then eta did not decide
                is_stalled = find_stall(gamma, eta) is not None
            self.thresholds.observe_turn(gamma, eta, is_stalled)
        return stall

    def _note_end(self, turn: _Turn, kept: Response) -> None:
        request = turn.request
        if isfinite(kept.score):
            self.scores[turn.lease] = kept.score
        self.counters.turns += 1
        name = f"{request.key.id}, turn {request.turn_index + 1}"
        for response in (*turn.rejected, kept):
            self.decisions.extend((name, event) for event in response.events)

    async def _prepare_retry(
        self, turn: _Turn, engine: EngineClient, error: EngineError | NoProgressError
    ) -> None:
        """Return when the turn can be tried again, after a try on `engine` that ended in `error`.

        Raises `error` if the turn is to be given up.
        """
        turn.failures += 1
        turn.last_engine = engine
        if isinstance(error, EngineBusy):
            busy_seconds = turn.busy_seconds + error.seconds
            if busy_seconds <= self._config.engine.progress_timeout_s:
                turn.busy_seconds = busy_seconds
                await asyncio.sleep(error.seconds)
                return
        if isinstance(error, NonFiniteError):
            await self._engines.check_finite(engine, str(error))
        else:
            self._engines.mark_suspect(engine, str(error))
        turn.errors += 1
        if turn.errors > MAX_RETRIES:
            raise error

    # --- one response

    async def _sample(
        self,
        engine: EngineClient,
        response_id: str,
        turn: _Turn,
        eta: float | None,
        early_test: EarlyStopTest | None,
    ) -> Response:
        t2po = self._config.control.t2po
        is_training = not turn.request.key.evaluation
        call = self._prepare_call(response_id, turn, early_test)
        if self.streamer is None:
            generation, ended_early = await self._generate_watched(engine, call)
        else:
            generation, ended_early = await self._generate_streamed(engine, call, self.streamer)
        if not all(map(isfinite, generation.log_probs)):
            raise NonFiniteError("the model computed NaN or infinity for a token of a response")
        self._engines.check_weights(engine, generation.spans)
        if is_training:
            self.thresholds.observe_thinking(call.rule)
        # Signals of an evaluation without control say only that the engine goes on.
        is_recorded = is_training or turn.controlled
        record = ControlRecord(
            call.rule if is_recorded else None,
            call.steered,
            t2po.turn_mean,
            t2po.turn_skip,
            eta,
            ended_early,
        )
        return build_response(generation, record)

    async def _generate_streamed(
        self, engine: EngineClient, call: _Call, streamer: StreamingController
    ) -> tuple[Generation, bool]:
        """Generate a response whose signals are estimates; also, if it was ended early."""
        control = StreamControl(call.rule, call.spec.closing_tokens, call.steered, call.early_test)
        turn = await streamer.generate(
            engine, call.response_id, call.prompt, call.sampling, control
        )
        self.counters.generated_tokens += turn.wasted_tokens
        self.counters.late_tokens += turn.wasted_tokens
        self.counters.cuts += turn.cut
        return turn.generation, turn.ended_early

    async def _generate_watched(self, engine: EngineClient, call: _Call) -> tuple[Generation, bool]:
        """Generate a response whose signals come from the tap; also, if it was ended early.

        Returns when the signals have arrived.
        """
        name = call.response_id
        mode = self._intervention_mode(call.steered)
        in_engine = mode is InterventionMode.ENGINE
        watched = WatchedTurn(call.rule, mode, call.early_test)
        self._signals.watch(name, watched)
        try:
            generating = engine.generate(
                name,
                call.prompt,
                call.sampling,
                watched=True,
                rule=call.spec if in_engine else None,
            )
            generation = await self._signals.await_response(
                name,
                generating,
                self._config.engine.progress_timeout_s,
                self._engines.awake_since,
            )
            await self._signals.finish(name, len(generation.tokens), SIGNAL_PATIENCE)
            if watched.failure is not None:
                raise watched.failure
        finally:
            self._signals.forget(name)
        if generation.finish_reason == "abort":
            # An engine that is told to end does that to its turns; the streamer raises then, too.
            raise EngineError(
                f"the engine at {engine.url} ended turn {name}, which nobody asked for"
            )
        return generation, watched.ended_early(len(generation.tokens))

    # --- settings of a response that begins now

    def _prepare_call(
        self, response_id: str, turn: _Turn, early_test: EarlyStopTest | None
    ) -> _Call:
        prompt = unpack(turn.request.prompt, INT32).tolist()
        spec = build_rule_spec(self._config.control, self._tokens, self.thresholds.epsilon)
        return _Call(
            response_id=response_id,
            prompt=prompt,
            sampling=self._sampling(turn, len(prompt)),
            spec=spec,
            rule=spec.build(),
            steered=turn.controlled and self._config.control.mode in STEERED,
            early_test=early_test,
        )

    def _sampling(self, turn: _Turn, prompt_tokens: int) -> Sampling:
        config = self._config
        decoding = config.decoding(turn.request.key.evaluation)
        repeats = 0
        if turn.controlled and config.control.mode in RESAMPLED_BY_ETA:
            repeats = config.control.t2po.repetition_limit
        return Sampling(
            max_tokens=min(config.sampling.max_tokens, config.engine.max_model_len - prompt_tokens),
            cache_salt=f"{self._nonce}-{self.weights_name}",
            temperature=decoding.temperature,
            top_k=decoding.top_k,
            top_p=decoding.top_p,
            seed=turn.seed if config.sampling.per_request_seeds else None,
            stop_token_ids=self._tokens.end,
            repeats=repeats,
        )

    def _intervention_mode(self, steered: bool) -> InterventionMode:
        if not steered:
            return InterventionMode.OBSERVE
        if self._config.control.decide_in == "controller":
            return InterventionMode.STEER
        return InterventionMode.ENGINE

    def _early_test(self, turn: _Turn, eta: float | None) -> EarlyStopTest | None:
        t2po = self._config.control.t2po
        if not t2po.early_stall or not turn.may_resample:
            return None
        if turn.previous_score is None or eta is None:
            return None
        return EarlyStopTest(
            t2po.early_stall,
            turn.previous_score,
            eta,
            self._config.sampling.max_tokens,
            t2po.turn_mean,
            t2po.turn_skip,
        )

    def _stall(self, response: Response, gamma: float | None, eta: float | None) -> Stall | None:
        if response.stop is StopReason.REPETITION:
            return LOOP
        if response.stop is StopReason.EARLY:
            return Stall(gamma, eta, "early")
        return find_stall(gamma, eta, zero_counts=self._config.control.t2po.score != "code")
