"""From signal frames to decisions to steers: one frame per engine step, one rule per turn being
watched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Literal

import zmq
import zmq.asyncio

from controller.progress import await_with_progress_timeout
from controller.rules.early_stop import EarlyStopTest
from controller.rules.scores import Signal
from controller.rules.thinking import NEVER, ThinkingRule, ThinkingSettings
from controller.think_tokens import ThinkTokens
from engine.client import EngineClient, Sampling
from engine.connection import NoNumbers
from engine.responses import Generation
from protocol.arrays import FLOAT32, INT32, unpack
from protocol.batched_router import BatchedRouter
from protocol.codec import FrameReader, encode
from protocol.messages import ForceTokens, Message, SignalFrame
from protocol.security import HEARTBEAT_SECONDS, Keys, bind
from protocol.validation import is_measured, misplaced_rows, validate_signal_frame, without_rows

HIGH_WATER = 10_000
"""Frames.

At 150 steps a second this is a minute of a controller that does not read; then the connection seems
to be dead.
"""


InterventionMode = Literal["no", "steer", "engine"]
"""What comes of an intervention: nothing, since only the signals are wanted; a steer; or the engine
acts by itself."""


PROBE_PATIENCE = 10.0
"""Seconds to wait for the signal of a token that has come: long, since a busy start must not pass
for an engine without the tap."""


@dataclass
class Watch:
    """One turn under observation."""

    rule: ThinkingRule
    acts: InterventionMode
    early: EarlyStopTest | None = None  # the turn is ended once this finds it stalled
    expected: int | None = None  # tokens of the finished response, once known
    tokens: list[int] = field(
        default_factory=list
    )  # before each signal, while somebody looks (SignalRouter.keep_tokens)
    seen: float = field(
        default_factory=time.monotonic
    )  # when its last signal came, or watching began
    failure: NoNumbers | None = None  # what ends it
    failing: asyncio.Future[NoNumbers] | None = None  # the same, for whoever waits for the response
    complete: asyncio.Event = field(default_factory=asyncio.Event)

    def fail(self, failure: NoNumbers) -> None:
        self.failure = failure
        self.complete.set()
        if self.failing is not None and not self.failing.done():
            self.failing.set_result(failure)

    def check_complete(self) -> None:
        if self.expected is not None and len(self.rule.scores) >= self.expected:
            self.complete.set()


class SignalRouter:
    """Reads the engine's frames, feeds each row to its turn's rule, and sends the steers that
    follow."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        endpoint: str,
        tokens: ThinkTokens,
        max_model_len: int,
        keys: Keys | None = None,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._socket = context.socket(zmq.ROUTER)
        self._socket.set(zmq.LINGER, 0)
        bind(self._socket, endpoint, keys, "run", heartbeat_seconds, most_waiting=HIGH_WATER)
        self._arrivals = BatchedRouter(self._socket)
        self.reader = FrameReader()
        self._tokens = tokens
        self._max_model_len = max_model_len
        self._watched: dict[str, Watch] = {}
        self._seen = 0.0  # when the last signal of any turn came
        self.frames = 0
        self.interventions = 0
        self.keep_tokens = False
        """Whether somebody looks at the turns that are under way."""

    @property
    def endpoint(self) -> str:
        """Where the engine is to connect."""
        return self._socket.get(zmq.LAST_ENDPOINT).decode()

    def looked_at(self, by: int) -> None:
        """So many look at the turns under way, of which tokens are kept if there is anybody."""
        self.keep_tokens = by > 0

    def under_way(self, most: int) -> list[tuple[str, list[int], list[float]]]:
        """(Turn, its tokens so far, their scores) of some turns; of one that began before anybody
        looked, the part since then."""
        found = []
        for turn_id, watch in list(self._watched.items())[:most]:
            tokens = watch.tokens[
                1:
            ]  # of the first signal it is the prompt's last, or one that was missed
            scores = watch.rule.scores[: len(watch.rule.scores) - 1]
            found.append((turn_id, tokens, scores[len(scores) - len(tokens) :]))
        return found

    def watch(self, turn_id: str, watch: Watch) -> None:
        self._watched[turn_id] = watch

    async def answers(self, engine: EngineClient) -> bool:
        """Whether the engine sends signals: of one token, for which nobody asked.

        Raises EngineError. `run` must be running.
        """
        rule = ThinkingRule(ThinkingSettings("paper", 0.5, 2, "mean", 0, NEVER, 1, 1), -2, -2)
        watch = Watch(rule, "no")
        # of this one alone: another engine's, or an earlier one's, is no answer
        name = f"probe-{token_hex(8)}"
        self.watch(name, watch)
        try:
            await engine.generate(name, [0], Sampling(max_tokens=1, cache_salt=name), watched=True)
            await self.finish(name, 1, PROBE_PATIENCE)
        finally:
            self.forget(name)
        return watch.complete.is_set()

    async def finish(self, turn_id: str, tokens: int, patience: float) -> None:
        """Stop watching, after the signals of all `tokens` tokens have arrived, or `patience`
        seconds."""
        watch = self._watched[turn_id]
        watch.expected = tokens
        watch.check_complete()
        try:
            async with asyncio.timeout(patience):
                await watch.complete.wait()
        except TimeoutError:
            pass  # the record then has NaN for the tokens whose frames were lost
        finally:
            del self._watched[turn_id]

    async def generated(
        self, turn_id: str, call: Awaitable[Generation], seconds: float
    ) -> Generation:
        """The result of `call`, which generates a watched turn.

        Raises TurnStuck, with the call cancelled, once no signal of the turn (or of any, before its
        first) has come for so many seconds; and NoNumbers as soon as one says so.
        """
        watch = self._watched[turn_id]

        watch.failing = asyncio.get_running_loop().create_future()
        if watch.failure is not None:
            watch.fail(watch.failure)

        def last_progress() -> float:
            """One that has not begun may wait for its place in the engine as long as others go
            on."""
            return watch.seen if watch.rule.scores else max(watch.seen, self._seen)

        return await await_with_progress_timeout(call, last_progress, seconds, watch.failing)

    def forget(self, turn_id: str) -> None:
        self._watched.pop(turn_id, None)

    async def run(self) -> None:
        """Forever: frames in, decisions, steers out."""
        while True:
            for received in map(self.reader.take, await self._arrivals.receive()):
                if received is not None:
                    self._decide(received.peer, received.message)

    def _decide(self, peer: bytes, message: Message) -> None:
        if not isinstance(message, SignalFrame):
            return self.reader.refuse(peer, f"{type(message).__name__} that no engine sends")
        flaw = validate_signal_frame(message)
        if flaw:
            return self.reader.refuse(peer, flaw)
        self.frames += 1
        misplaced = misplaced_rows(message, self._max_model_len)
        if misplaced:
            most = self._max_model_len
            self.reader.refuse(
                peer,
                f"a signal at a position that no response of at most {most} tokens has; the "
                "others are used",
            )
            message = without_rows(message, set(misplaced))
        for steer in self.observe(message):
            self._arrivals.send([peer, encode(steer)])

    def observe(self, frame: SignalFrame) -> list[ForceTokens]:
        """Feed one frame to the rules of its turns."""
        columns = (
            unpack(frame.position, INT32).tolist(),
            unpack(frame.entropy, FLOAT32).tolist(),
            unpack(frame.confidence, FLOAT32).tolist(),
            unpack(frame.top_log_prob, FLOAT32).tolist(),
            unpack(frame.forced, INT32).tolist(),
            unpack(frame.previous, INT32).tolist(),
        )
        steers = []
        now = self._seen = time.monotonic()
        for turn_id, signal in zip(frame.turn_ids, map(Signal, *columns), strict=True):
            watch = self._watched.get(turn_id)
            if watch is None:
                continue
            watch.seen = now
            if not is_measured(signal):
                watch.fail(
                    NoNumbers(
                        f"the model computed NaN or infinity for token {signal.position} of a "
                        "response"
                    )
                )
                continue
            if self.keep_tokens:
                watch.tokens.append(signal.previous)
            if watch.rule.observe(signal) is not None:
                self.interventions += watch.acts != "no"
                if watch.acts == "steer":
                    steers.append(
                        ForceTokens(
                            turn_id=turn_id, tokens=self._tokens.queue, unless=self._tokens.close
                        )
                    )
            if watch.early is not None and watch.early.observe(watch.rule.scores):
                steers.append(ForceTokens(turn_id=turn_id, tokens=self._tokens.end[:1], unless=-1))
            if watch.expected is not None:
                watch.check_complete()
        return steers

    def close(self) -> None:
        self._socket.close()
