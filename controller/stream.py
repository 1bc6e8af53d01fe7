"""Control without our plugin in the engine: the turn is streamed with its most likely tokens, and an intervention is a second request.

    stop the stream  ->  cut what was generated at the decision  ->  go on with prompt + kept tokens + queue

The rule is the same as with the tap, and acts at the token of its decision, since what was sampled there is thrown away. What it sees are
estimates (`rules.tail`), and the tokens between the decision and the engine's last chunk are wasted.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from math import nan

import msgspec

from controller.engine.answers import Chunk, Generation, covering
from controller.engine.client import EngineClient, Sampling
from controller.progress import while_it_goes_on
from controller.rules.scores import Signal
from controller.rules.tail import estimate
from controller.rules.thinking import DelegatedRule, Intervention, ThinkingRule
from protocol.messages import Span

TOP_K = 20
"""Log-probs to ask for: vLLM's default limit."""


@dataclass(frozen=True)
class StreamedTurn:
    generation: Generation
    wasted: int  # tokens generated past the decision
    cut: bool


class Streamer:
    """Turns against an engine that has no tap."""

    def __init__(self, engine: EngineClient, vocabulary: int, top_j: int) -> None:
        self._engine = engine
        self._vocabulary = vocabulary
        self._top_j = top_j
        self._seen = 0.0  # when the last chunk of any turn came

    async def generate(
        self,
        turn_id: str,
        prompt: list[int],
        sampling: Sampling,
        delegated: DelegatedRule,
        rule: ThinkingRule,
        *,
        steers: bool,
        stall_seconds: float,
    ) -> StreamedTurn:
        """A response; `rule` (of `delegated`) has observed it then. `steers`: its intervention is carried out. Raises EngineError, and
        TurnStuck when no token comes for `stall_seconds`.
        """
        whole = _Parts()
        decision = await self._stream(turn_id, prompt, sampling, rule, whole, stall_seconds, stops=steers)
        if decision is None:
            return StreamedTurn(whole.generation(), 0, False)
        wasted = len(whole.tokens) - decision.position
        whole.cut(decision.position)
        queue = delegated.queue[: sampling.max_tokens - decision.position]
        rule.force(queue)
        whole.force(queue)
        left = sampling.max_tokens - len(whole.tokens)
        if left > 0:
            rest = msgspec.structs.replace(sampling, max_tokens=left)
            await self._stream(f"{turn_id}.cut", [*prompt, *whole.tokens], rest, rule, whole, stall_seconds, stops=False)
        else:
            whole.finish_reason = "length"
        return StreamedTurn(whole.generation(), wasted, True)

    async def _stream(
        self, turn_id: str, prompt: list[int], sampling: Sampling, rule: ThinkingRule, whole: _Parts, stall_seconds: float, *, stops: bool
    ) -> Intervention | None:
        """Append a stream to `whole`. With `stops`, abort it at the rule's intervention, and return that once the engine has ended it."""
        whole.begin_part()
        decision = None
        stream = self._engine.stream(turn_id, prompt, sampling, top_k=TOP_K)
        async for chunk in self._going_on(stream, stall_seconds):
            for token, entry in zip(chunk.tokens, chunk.log_probs, strict=True):
                previous = whole.tokens[-1] if whole.tokens else -1
                whole.tokens.append(token)
                whole.log_probs.append(entry.log_prob)
                if decision is None:
                    values = estimate(entry.top, entry.others, self._vocabulary, self._top_j) if entry.top else (nan, nan, nan)
                    decided = rule.observe(Signal(len(whole.tokens) - 1, *values, -1, previous))
                    if decided is not None and stops:
                        decision = decided
                        await self._engine.abort(turn_id)
            whole.end(chunk)
        return decision

    async def _going_on(self, stream: AsyncIterator[Chunk], seconds: float) -> AsyncIterator[Chunk]:
        """The chunks. TurnStuck, with the stream closed, when none comes for so many seconds (or none of any turn, before the first)."""
        begun, seen = False, time.monotonic()

        def last_progress() -> float:
            return seen if begun else max(seen, self._seen)

        async with contextlib.aclosing(stream):
            while chunk := await while_it_goes_on(anext(stream, None), last_progress, seconds):
                begun, seen = True, time.monotonic()
                self._seen = seen
                yield chunk


class _Parts:
    """A response that comes in parts: what was streamed, what was forced, what was streamed after that."""

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
            self._spans += [Span(self._start + s.start, self._start + s.stop, s.version) for s in spans]

    def cut(self, length: int) -> None:
        del self.tokens[length:], self.log_probs[length:]
        self._spans = [Span(s.start, min(s.stop, length), s.version) for s in self._spans if s.start < length]

    def force(self, queue: list[int]) -> None:
        """Forced tokens count as of the weights that were there last; they have log-prob 0, as with the tap."""
        version = self._spans[-1].version if self._spans else -1
        self._spans.append(Span(len(self.tokens), len(self.tokens) + len(queue), version))
        self.tokens += queue
        self.log_probs += [0.0] * len(queue)

    def generation(self) -> Generation:
        return Generation(self.tokens, self.log_probs, [span for span in self._spans if span.stop > span.start], self.finish_reason)
