"""From signal frames to decisions to forced tokens.

There is one frame per engine step, and one rule per turn being watched. Here is also the waiting
for an engine that may make no progress.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from secrets import token_hex
from typing import NamedTuple, TypeVar

import zmq
import zmq.asyncio

from controller.rules.early_stop import EarlyStopTest
from controller.rules.scores import Signal
from controller.rules.thinking import ThinkingRule, ThinkingSettings, ThinkTags
from controller.think_tokens import ThinkTokens
from engine.client import EngineClient, Sampling
from engine.connection import NonFiniteError
from engine.responses import Generation
from protocol.arrays import FLOAT32, INT32, unpack
from protocol.codec import FrameReader, encode
from protocol.messages import ForceTokens, Message, SignalFrame
from protocol.router import BatchedRouter
from protocol.security import HEARTBEAT_SECONDS, CurveKeys, bind
from protocol.validation import (
    drop_rows,
    find_misplaced_rows,
    is_finite_signal,
    validate_signal_frame,
)

T = TypeVar("T")

HIGH_WATER = 10_000
"""Frames that may wait to be read.

At 150 steps a second this is a minute of a controller that does not read; then the connection seems
to be dead.
"""

PROBE_TOKENS = 2

PROBE_PATIENCE = 10.0
"""Seconds to wait for the signal of a token that has come.

It is long, since a busy start must not pass for an engine without the tap.
"""

PROBE_SETTINGS = ThinkingSettings(
    score="paper",
    alpha=0.5,
    vocabulary=2,
    delta_statistic="mean",
    window=0,
    epsilon=None,
    min_thinking=1,
    max_thinking=1,
)
"""A rule that only counts signals: no token begins a thought for it."""


class NoProgressError(Exception):
    """The engine makes no progress with a turn."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the engine made no progress for {seconds:g} s (engine.progress_timeout_s)"
        )


async def await_with_progress_timeout(
    call: Awaitable[T],
    last_progress: Callable[[], float],
    seconds: float,
    failing: asyncio.Future[NonFiniteError] | None = None,
) -> T:
    """Wait for the result of `call`, as long as there is progress.

    Raises NoProgressError, with the call canceled, once `last_progress()`, a time of the monotonic
    clock, is so many seconds ago; or the result of `failing`, once it has one. (Not
    asyncio.wait_for, which in Python 3.11 loses a cancellation that meets a result.)
    """
    task = asyncio.ensure_future(call)
    awaited: set[asyncio.Future] = {task}
    if failing is not None:
        awaited.add(failing)
    try:
        while not task.done():
            timeout = last_progress() + seconds - time.monotonic()
            if timeout <= 0:
                raise NoProgressError(seconds)
            await asyncio.wait(awaited, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if failing is not None and failing.done():
                raise failing.result()
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


class InterventionMode(StrEnum):
    """How the interventions of a turn's rule are carried out."""

    OBSERVE = "observe"
    """Not at all: only the signals are wanted."""
    STEER = "steer"
    """By a message that makes the engine force tokens."""
    ENGINE = "engine"
    """By the engine itself, which runs the same rule."""


@dataclass
class WatchedTurn:
    """One turn under observation."""

    rule: ThinkingRule
    mode: InterventionMode
    early_test: EarlyStopTest | None = None
    """The turn is ended once this finds it stalled."""
    expected_tokens: int | None = None
    """Length of the finished response, once known."""
    tokens: list[int] = field(default_factory=list)
    """Token before each signal, while somebody looks (SignalRouter.keep_tokens)."""
    last_signal_at: float = field(default_factory=time.monotonic)
    """When its last signal came, or watching began."""
    failure: NonFiniteError | None = None
    """The error that ends it."""
    failing: asyncio.Future[NonFiniteError] | None = None
    """The same, for whoever waits for the response."""
    complete: asyncio.Event = field(default_factory=asyncio.Event)

    def fail(self, failure: NonFiniteError) -> None:
        self.failure = failure
        self.complete.set()
        if self.failing is not None and not self.failing.done():
            self.failing.set_result(failure)

    def check_complete(self) -> None:
        if self.expected_tokens is not None and len(self.rule.scores) >= self.expected_tokens:
            self.complete.set()

    def ended_early(self, tokens: int) -> bool:
        """True if the last of its `tokens` tokens was forced, to end it as stalled.

        A turn that ends by itself before that takes effect is judged as it is.
        """
        if self.early_test is None or self.early_test.position is None:
            return False
        forced = self.rule.forced
        return 0 < tokens <= len(forced) and forced[tokens - 1]


class TurnView(NamedTuple):
    """A turn under way, as it is shown."""

    turn_id: str
    tokens: list[int]
    scores: list[float]


class SignalRouter:
    """Reads the engine's frames, feeds each row to its turn's rule, and sends tokens to force."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        endpoint: str,
        tokens: ThinkTokens,
        max_model_len: int,
        keys: CurveKeys | None = None,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._socket = context.socket(zmq.ROUTER)
        self._socket.set(zmq.LINGER, 0)
        bind(self._socket, endpoint, keys, "run", heartbeat_seconds, max_waiting=HIGH_WATER)
        self._arrivals = BatchedRouter(self._socket)
        self.reader = FrameReader()
        self._tokens = tokens
        self._max_model_len = max_model_len
        self._watched: dict[str, WatchedTurn] = {}
        self._last_signal_at = 0.0  # of any turn
        self.frames = 0
        self.interventions = 0
        self.keep_tokens = False
        """True while somebody looks at the turns under way."""

    def __len__(self) -> int:
        """Count the turns that are watched."""
        return len(self._watched)

    @property
    def endpoint(self) -> str:
        """Address for the engine to connect to."""
        return self._socket.get_string(zmq.LAST_ENDPOINT)

    def set_viewers(self, viewers: int) -> None:
        """Keep the tokens of turns under way while anybody looks at them."""
        self.keep_tokens = viewers > 0

    def view_turns(self, limit: int) -> list[TurnView]:
        """Some turns under way; of one that began before anybody looked, the part since then."""
        views = []
        for turn_id, watched in list(self._watched.items())[:limit]:
            # The first signal's token is the prompt's last, or one that was missed.
            tokens = watched.tokens[1:]
            scores = watched.rule.scores[: len(watched.rule.scores) - 1]
            views.append(TurnView(turn_id, tokens, scores[len(scores) - len(tokens) :]))
        return views

    def watch(self, turn_id: str, watched: WatchedTurn) -> None:
        self._watched[turn_id] = watched

    async def probe(self, engine: EngineClient) -> bool:
        """Find out if the engine sends signals, by tokens that nobody asked for.

        Two: with chunked prefill the signal of the first is sent when the second is sampled, where
        nothing tells the tap which chunk of a prompt is the last (vLLM's V1 runner). Raises
        EngineError. `run` must be running.
        """
        watched = WatchedTurn(ThinkingRule(PROBE_SETTINGS, ThinkTags()), InterventionMode.OBSERVE)
        # A name of this probe alone: another engine's signal, or an earlier one's, is no answer.
        name = f"probe-{token_hex(8)}"
        self.watch(name, watched)
        try:
            sampling = Sampling(max_tokens=PROBE_TOKENS, cache_salt=name, ignore_eos=True)
            await engine.generate(name, [0], sampling, watched=True)
            await self.finish(name, 1, PROBE_PATIENCE)
        finally:
            self.forget(name)
        return watched.complete.is_set()

    async def finish(self, turn_id: str, tokens: int, patience: float) -> None:
        """Stop watching, after the signals of all tokens have arrived.

        The turn has `tokens` of them, which are waited for at most `patience` seconds.
        """
        watched = self._watched[turn_id]
        watched.expected_tokens = tokens
        watched.check_complete()
        try:
            async with asyncio.timeout(patience):
                await watched.complete.wait()
        except TimeoutError:
            pass  # the record then has NaN for the tokens whose frames were lost
        finally:
            del self._watched[turn_id]

    async def await_response(
        self,
        turn_id: str,
        call: Awaitable[Generation],
        seconds: float,
        awake_since: Callable[[], float],
    ) -> Generation:
        """Wait for the result of `call`, which generates a watched turn.

        Raises NoProgressError, with the call canceled, once no signal of the turn (or of any,
        before its first) has come for so many seconds; and NoNumbers as soon as one says so. The
        time before `awake_since()` does not count (EnginePool.awake_since).
        """
        watched = self._watched[turn_id]
        watched.failing = asyncio.get_running_loop().create_future()
        if watched.failure is not None:
            watched.fail(watched.failure)

        def last_progress() -> float:
            if watched.rule.scores:
                return max(watched.last_signal_at, awake_since())
            # One that has not begun may wait for its place in the engine while others go on.
            return max(watched.last_signal_at, self._last_signal_at, awake_since())

        return await await_with_progress_timeout(call, last_progress, seconds, watched.failing)

    def forget(self, turn_id: str) -> None:
        self._watched.pop(turn_id, None)

    async def run(self) -> None:
        """Serve forever: frames in, decisions, tokens to force out."""
        while True:
            for received in map(self.reader.take, await self._arrivals.receive()):
                if received is not None:
                    self._take(received.peer, received.message)

    def _take(self, peer: bytes, message: Message) -> None:
        if not isinstance(message, SignalFrame):
            self.reader.refuse(peer, f"{type(message).__name__} that no engine sends")
            return
        flaw = validate_signal_frame(message)
        if flaw:
            self.reader.refuse(peer, flaw)
            return
        self.frames += 1
        misplaced = find_misplaced_rows(message, self._max_model_len)
        if misplaced:
            self.reader.refuse(
                peer,
                f"a signal at a position that no response of at most {self._max_model_len} tokens "
                "has; the others are used",
            )
            message = drop_rows(message, set(misplaced))
        for forced in self.observe(message):
            self._arrivals.send([peer, encode(forced)])

    def observe(self, frame: SignalFrame) -> list[ForceTokens]:
        """Feed one frame to the rules of its turns; returns what the engine is to force."""
        columns = (
            unpack(frame.position, INT32).tolist(),
            unpack(frame.entropy, FLOAT32).tolist(),
            unpack(frame.confidence, FLOAT32).tolist(),
            unpack(frame.top_log_prob, FLOAT32).tolist(),
            unpack(frame.forced, INT32).tolist(),
            unpack(frame.previous, INT32).tolist(),
        )
        self._last_signal_at = time.monotonic()
        forced: list[ForceTokens] = []
        for turn_id, signal in zip(frame.turn_ids, map(Signal, *columns), strict=True):
            watched = self._watched.get(turn_id)
            if watched is not None:
                forced += self._observe_signal(turn_id, watched, signal)
        return forced

    def _observe_signal(
        self, turn_id: str, watched: WatchedTurn, signal: Signal
    ) -> list[ForceTokens]:
        watched.last_signal_at = self._last_signal_at
        if not is_finite_signal(signal):
            watched.fail(
                NonFiniteError(
                    f"the model computed NaN or infinity for token {signal.position} of a response"
                )
            )
            return []
        if self.keep_tokens:
            watched.tokens.append(signal.previous)
        tokens = self._tokens
        forced = []
        intervention = watched.rule.observe(signal)
        if intervention is not None and watched.mode is not InterventionMode.OBSERVE:
            self.interventions += 1
        if intervention is not None and watched.mode is InterventionMode.STEER:
            forced.append(
                ForceTokens(
                    turn_id=turn_id, tokens=tokens.closing_tokens, unless=tokens.tags.closing
                )
            )
        if watched.early_test is not None and watched.early_test.observe(watched.rule.scores):
            forced.append(ForceTokens(turn_id=turn_id, tokens=tokens.end[:1]))
        watched.check_complete()
        return forced

    def close(self) -> None:
        self._socket.close()
