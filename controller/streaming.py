"""Control without our plugin in the engine, by streaming the turn.

It comes with its most likely tokens, and an intervention is a second request.

    stop the stream
    -> cut what was generated at the decision
    -> go on with prompt + kept tokens + closing tokens

The rule is the same as with the tap, and acts at the token of its decision, since what was sampled
there is thrown away. What it sees are estimates (`rules.topk_bounds`), and the tokens between the
decision and the engine's last chunk are wasted.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from math import inf

import msgspec

from controller.rules.early_stop import EarlyStopTest
from controller.rules.scores import Signal
from controller.rules.thinking import NO_SIGNAL, ThinkingRule
from controller.rules.topk_bounds import estimate_from_topk
from controller.signals import await_with_progress_timeout
from engine.client import EngineClient, Sampling
from engine.connection import EngineError
from engine.responses import Chunk, Generation, cover_tokens
from protocol.messages import Span

LISTED_LOG_PROBS = 20
"""Log-probs to ask for: vLLM's default limit."""


@dataclass
class StreamControl:
    """Watches a streamed turn, and says where it is cut or ended."""

    rule: ThinkingRule
    closing_tokens: list[int]  # what the rule's intervention forces
    steers: bool  # the intervention is carried out
    early_test: EarlyStopTest | None = None  # the turn is ended once this finds it stalled
    cut_at: int | None = None  # position of the token to replace by the closing tokens
    ended_at: int | None = None  # position of the last token, of a turn that was ended early

    def ends_stream(self, signal: Signal) -> bool:
        """Take the signal of one token; True where the stream is to end at it."""
        if self.rule.observe(signal) is not None and self.steers:
            self.cut_at = signal.position
        if self.early_test is not None and self.early_test.observe(self.rule.scores):
            self.ended_at = signal.position
        return signal.position in (self.cut_at, self.ended_at)


@dataclass(frozen=True)
class StreamedTurn:
    """The response of a streamed turn, and what became of it."""

    generation: Generation
    wasted_tokens: int  # generated past a decision
    cut: bool  # by the rule's intervention
    ended_early: bool  # since it was all but certain to be stalled


class StreamingController:
    """Generates turns against engines that have no tap.

    Raises NoProgressError when no token of one comes for `progress_timeout_s`.
    """

    def __init__(
        self,
        vocabulary: int,
        top_j: int,
        progress_timeout_s: float,
        awake_since: Callable[[], float] = lambda: -inf,
    ) -> None:
        """`awake_since`: the time before which no progress is expected (EnginePool.awake_since)."""
        self._awake_since = awake_since
        self._vocabulary = vocabulary
        self._top_j = top_j
        self._progress_timeout_s = progress_timeout_s
        self._last_chunk_at = 0.0  # when the last chunk of any turn came

    async def generate(
        self,
        engine: EngineClient,
        turn_id: str,
        prompt: list[int],
        sampling: Sampling,
        control: StreamControl,
    ) -> StreamedTurn:
        """Generate a response that `control` watches.

        Raises EngineError and NoProgressError.
        """
        response = StreamedResponse()
        wasted_tokens = 0
        await self._stream(engine, turn_id, prompt, sampling, control, response)
        if control.cut_at is not None and control.ended_at is None:
            closing_tokens = control.closing_tokens[: sampling.max_tokens - control.cut_at]
            wasted_tokens = response.cut(control.cut_at)
            control.rule.force(closing_tokens)
            response.force(closing_tokens)
            room = sampling.max_tokens - len(response.tokens)
            if room > 0:
                rest = msgspec.structs.replace(sampling, max_tokens=room)
                so_far = [*prompt, *response.tokens]
                await self._stream(engine, f"{turn_id}.cut", so_far, rest, control, response)
            else:
                response.finish_reason = "length"
        if control.ended_at is not None:
            wasted_tokens += response.cut(control.ended_at + 1)
        return StreamedTurn(
            response.generation(),
            wasted_tokens,
            cut=control.cut_at is not None,
            ended_early=control.ended_at is not None,
        )

    async def _stream(
        self,
        engine: EngineClient,
        name: str,
        prompt: list[int],
        sampling: Sampling,
        control: StreamControl,
        response: StreamedResponse,
    ) -> None:
        """Append a stream to the response, and abort it where `control` says so.

        What comes between that and the engine's end of it is not looked at. Raises EngineError when
        the engine aborts the stream by itself, as one does that is told to end.
        """
        response.begin_part()
        aborted = False
        stream = engine.stream(name, prompt, sampling, log_probs=LISTED_LOG_PROBS)
        async for chunk in self._chunks(stream):
            for token, entry in zip(chunk.tokens, chunk.log_probs, strict=True):
                previous = response.append(token, entry.log_prob)
                if aborted:
                    continue
                values = NO_SIGNAL
                if entry.top:
                    values = estimate_from_topk(
                        entry.top, entry.others, self._vocabulary, self._top_j
                    )
                position = len(response.tokens) - 1
                if control.ends_stream(Signal(position, *values, -1, previous)):
                    aborted = True
                    await engine.abort(name)
            response.end_part(chunk)
        if response.finish_reason == "abort" and not aborted:
            raise EngineError(
                f"the engine at {engine.url} ended turn {name}, which nobody asked for"
            )

    async def _chunks(self, stream: AsyncGenerator[Chunk, None]) -> AsyncIterator[Chunk]:
        """Pass the chunks of a stream on.

        Raises NoProgressError, with the stream closed, when none comes for too long (or none of any
        turn, before the first).
        """
        begun = False
        last_chunk_at = time.monotonic()

        def last_progress() -> float:
            if begun:
                return max(last_chunk_at, self._awake_since())
            return max(last_chunk_at, self._last_chunk_at, self._awake_since())

        async with contextlib.aclosing(stream):
            while True:
                chunk = await await_with_progress_timeout(
                    anext(stream, None), last_progress, self._progress_timeout_s
                )
                if chunk is None:
                    return
                begun = True
                last_chunk_at = time.monotonic()
                self._last_chunk_at = last_chunk_at
                yield chunk


class StreamedResponse:
    """A response that comes in parts.

    They are what was streamed, what was forced, and what was streamed after that.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.log_probs: list[float] = []
        self.finish_reason = "stop"
        self._spans: list[Span] = []
        self._part_start = 0

    def begin_part(self) -> None:
        self._part_start = len(self.tokens)

    def append(self, token: int, log_prob: float) -> int:
        """Add a token; returns the one before it, or -1."""
        previous = self.tokens[-1] if self.tokens else -1
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        return previous

    def end_part(self, chunk: Chunk) -> None:
        """Take why a part ended, and which weights produced it, from its last chunk."""
        if chunk.finish_reason is None:
            return
        self.finish_reason = chunk.finish_reason
        start = self._part_start
        spans = cover_tokens(chunk.spans, len(self.tokens) - start)
        self._spans += [Span(start + s.start, start + s.stop, s.version) for s in spans]

    def cut(self, length: int) -> int:
        """Keep so many tokens; returns how many there were beyond."""
        beyond = max(0, len(self.tokens) - length)
        del self.tokens[length:]
        del self.log_probs[length:]
        self._spans = [
            Span(s.start, min(s.stop, length), s.version) for s in self._spans if s.start < length
        ]
        return beyond

    def force(self, tokens: list[int]) -> None:
        """Append forced tokens, with log-prob 0, as with the tap.

        They count as of the weights that were there last.
        """
        version = self._spans[-1].version if self._spans else -1
        self._spans.append(Span(len(self.tokens), len(self.tokens) + len(tokens), version))
        self.tokens += tokens
        self.log_probs += [0.0] * len(tokens)

    def generation(self) -> Generation:
        return Generation(
            self.tokens,
            self.log_probs,
            [span for span in self._spans if span.stop > span.start],
            self.finish_reason,
        )
