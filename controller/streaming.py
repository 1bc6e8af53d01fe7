"""Control without our plugin in the engine: the turn is streamed with its most likely tokens, and
an intervention is a second request.

    stop the stream  ->  cut what was generated at the decision  ->  go on with prompt + kept tokens
    + queue

The rule is the same as with the tap, and acts at the token of its decision, since what was sampled
there is thrown away. What it sees are estimates (`rules.tail`), and the tokens between the decision
and the engine's last chunk are wasted.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from math import nan

import msgspec

from controller.progress import await_with_progress_timeout
from controller.rules.early_stop import EarlyStopTest
from controller.rules.scores import Signal
from controller.rules.thinking import ThinkingRule
from controller.rules.topk_bounds import estimate
from engine.client import EngineClient, Sampling
from engine.connection import EngineError
from engine.responses import Chunk, Generation, covering
from protocol.messages import Span

TOP_K = 20
"""Log-probs to ask for: vLLM's default limit."""


@dataclass(frozen=True)
class StreamedTurn:
    generation: Generation
    wasted: int  # tokens generated past a decision
    cut: bool
    early: bool  # ended, since it was all but certain to be stalled


@dataclass
class _Turn:
    """A turn in the making, and who looks at it."""

    rule: ThinkingRule
    steers: bool  # the rule's intervention is carried out
    early: EarlyStopTest | None
    parts: StreamedResponse
    cut_at: int | None = None  # position of the token to replace by the queue
    over_at: int | None = None  # position of the last token

    def look(self, signal: Signal) -> bool:
        """Whether the stream is to end here."""
        if self.rule.observe(signal) is not None and self.steers:
            self.cut_at = signal.position
        if self.early is not None and self.early.observe(self.rule.scores):
            self.over_at = signal.position
        return signal.position in (self.cut_at, self.over_at)


class StreamingController:
    """Turns against engines that have no tap.

    Raises TurnStuck when no token of one comes for `stall_seconds`.
    """

    def __init__(self, vocabulary: int, top_j: int, stall_seconds: float) -> None:
        self._vocabulary = vocabulary
        self._top_j = top_j
        self._stall_seconds = stall_seconds
        self._seen = 0.0  # when the last chunk of any turn came

    async def generate(
        self,
        engine: EngineClient,
        turn_id: str,
        prompt: list[int],
        sampling: Sampling,
        rule: ThinkingRule,
        queue: list[int],
        *,
        steers: bool,
        early: EarlyStopTest | None = None,
    ) -> StreamedTurn:
        """A response; `rule` has observed it then.

        `steers`: its intervention is carried out, by forcing `queue`. `early`: the turn is ended
        once that finds it stalled. Raises EngineError and TurnStuck.
        """
        turn = _Turn(rule, steers, early, whole := StreamedResponse())
        wasted = 0
        await self._stream(engine, turn, turn_id, prompt, sampling)
        if turn.cut_at is not None and turn.over_at is None:
            queue = queue[: sampling.max_tokens - turn.cut_at]
            wasted = whole.cut(turn.cut_at)
            rule.force(queue)
            whole.force(queue)
            left = sampling.max_tokens - len(whole.tokens)
            if left > 0:
                rest = msgspec.structs.replace(sampling, max_tokens=left)
                await self._stream(engine, turn, f"{turn_id}.cut", [*prompt, *whole.tokens], rest)
            else:
                whole.finish_reason = "length"
        if turn.over_at is not None:
            wasted += whole.cut(turn.over_at + 1)
        return StreamedTurn(
            whole.generation(), wasted, turn.cut_at is not None, turn.over_at is not None
        )

    async def _stream(
        self, engine: EngineClient, turn: _Turn, name: str, prompt: list[int], sampling: Sampling
    ) -> None:
        """Append a stream to the turn, and abort it where the turn says so; what comes until the
        engine has ended it is not looked at. Raises EngineError when the engine aborts it by
        itself, as one does that is told to end.
        """
        whole = turn.parts
        whole.begin_part()
        ended = False
        async for chunk in self._going_on(engine.stream(name, prompt, sampling, top_k=TOP_K)):
            for token, entry in zip(chunk.tokens, chunk.log_probs, strict=True):
                previous = whole.tokens[-1] if whole.tokens else -1
                whole.tokens.append(token)
                whole.log_probs.append(entry.log_prob)
                if not ended:
                    values = (
                        estimate(entry.top, entry.others, self._vocabulary, self._top_j)
                        if entry.top
                        else (nan, nan, nan)
                    )
                    ended = turn.look(Signal(len(whole.tokens) - 1, *values, -1, previous))
                    if ended:
                        await engine.abort(name)
            whole.end(chunk)
        if whole.finish_reason == "abort" and not ended:
            raise EngineError(
                f"the engine at {engine.url} ended turn {name}, which nobody asked for"
            )

    async def _going_on(self, stream: AsyncIterator[Chunk]) -> AsyncIterator[Chunk]:
        """The chunks.

        TurnStuck, with the stream closed, when none comes for too long (or none of any turn, before
        the first).
        """
        begun = False
        seen = time.monotonic()

        def last_progress() -> float:
            return seen if begun else max(seen, self._seen)

        async with contextlib.aclosing(stream):
            while chunk := await await_with_progress_timeout(
                anext(stream, None), last_progress, self._stall_seconds
            ):
                begun = True
                seen = time.monotonic()
                self._seen = seen
                yield chunk


class StreamedResponse:
    """A response that comes in parts: what was streamed, what was forced, what was streamed after
    that."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.log_probs: list[float] = []
        self.finish_reason = "stop"
        self._spans: list[Span] = []
        self._start = 0

    def begin_part(self) -> None:
        self._start = len(self.tokens)

    def end(self, chunk: Chunk) -> None:
        """The last chunk of a part says why it ended and which weights produced it."""
        if chunk.finish_reason is not None:
            self.finish_reason = chunk.finish_reason
            spans = covering(chunk.spans, len(self.tokens) - self._start)
            self._spans += [
                Span(self._start + s.start, self._start + s.stop, s.version) for s in spans
            ]

    def cut(self, length: int) -> int:
        """Keep so many tokens; returns how many there were beyond."""
        beyond = max(0, len(self.tokens) - length)
        del self.tokens[length:], self.log_probs[length:]
        self._spans = [
            Span(s.start, min(s.stop, length), s.version) for s in self._spans if s.start < length
        ]
        return beyond

    def force(self, queue: list[int]) -> None:
        """Forced tokens count as of the weights that were there last; they have log-prob 0, as with
        the tap."""
        version = self._spans[-1].version if self._spans else -1
        self._spans.append(Span(len(self.tokens), len(self.tokens) + len(queue), version))
        self.tokens += queue
        self.log_probs += [0.0] * len(queue)

    def generation(self) -> Generation:
        return Generation(
            self.tokens,
            self.log_probs,
            [span for span in self._spans if span.stop > span.start],
            self.finish_reason,
        )
