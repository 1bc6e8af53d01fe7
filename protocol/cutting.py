"""Responses that whoever reads them reads no further: at a stop string, or a number of tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from protocol.messages import ControlEvent, Response, Span, StopReason

SIGNAL_BYTES = 12
"""Bytes of a token's signals: three of float32."""


class Cut(NamedTuple):
    """Where a response ends for whoever reads it."""

    length: int
    """Tokens that are read."""
    stop: str = ""
    """The stop string that they end in; "" for none."""
    is_limit: bool = False
    """There was more than the tokens that were asked for."""


def find_cut(
    tokens: Sequence[int],
    max_tokens: int | None,
    stops: Sequence[str],
    decode: Callable[[Sequence[int]], str],
) -> Cut:
    """Find where a response ends: with the first token that completes a stop string, if any."""
    length = len(tokens)
    if max_tokens is not None:
        length = min(length, max_tokens)
    if stops and find_first(stops, decode(tokens[:length])):
        # Texts only grow with their tokens, but for a character of several of them.
        length = bisect_left(
            range(length), True, key=lambda end: bool(find_first(stops, decode(tokens[:end])))
        )
        return Cut(length, find_first(stops, decode(tokens[:length])))
    return Cut(length, is_limit=length < len(tokens))


def find_first(stops: Sequence[str], text: str) -> str:
    """Return the stop string that comes first in a text; "" if none is in it."""
    places = [(text.find(stop), stop) for stop in stops]
    found = [(place, stop) for place, stop in places if place >= 0]
    if not found:
        return ""
    return min(found)[1]


def cut_response(response: Response, cut: Cut) -> Response:
    """Keep the first tokens of a response: what comes after them nobody has read.

    It is a sample of a policy whose turn ends there.
    """
    length = cut.length
    if length == response.length and not cut.stop:
        return response
    stop = StopReason.END
    if cut.is_limit:
        stop = StopReason.LENGTH
    return replace(
        response,
        tokens=response.tokens[: 4 * length],
        log_probs=response.log_probs[: 4 * length],
        mask=response.mask[:length],
        spans=[
            Span(span.start, min(span.stop, length), span.version)
            for span in response.spans
            if span.start < length
        ],
        uncertainty=response.uncertainty[: 2 * length],
        signals=response.signals[: SIGNAL_BYTES * length],
        events=_cut_events(response.events, length),
        stop=stop,
        thinking=max(0, min(response.thinking, length - response.thought_start)),
        thought_start=min(response.thought_start, length),
    )


def _cut_events(events: Sequence[ControlEvent], length: int) -> list[ControlEvent]:
    """Keep the decisions that something was done by, and those about the whole response."""
    whole = [replace(event, position=min(event.position, length)) for event in events]
    return [
        event
        for event, before in zip(whole, events, strict=True)
        if event.kind != "intervene" or before.position < length
    ]
