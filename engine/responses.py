"""Answers of an engine to a turn, whole or streamed.

They are vLLM's JSON of /inference/v1/generate, as far as we read it.
"""

from __future__ import annotations

from math import nan
from typing import NamedTuple

import msgspec

from engine.constants import UNKNOWN_VERSION
from protocol.messages import Span

NO_LOG_PROB = -9999.0
"""Number that vLLM writes for a log-prob that is NaN or -inf."""


class Generation(msgspec.Struct, frozen=True):
    """One response."""

    tokens: list[int]
    # of the sampled tokens, of the distribution sampled from: after temperature, top-k and top-p;
    # NaN where the engine has none
    log_probs: list[float]
    spans: list[Span]  # which weights produced which tokens; covers all tokens, in order
    finish_reason: str  # "stop", "length", "abort" or "repetition"


class TokenLogProbs(NamedTuple):
    """Log-probs at one position: of the sampled token, and of the most likely ones.

    `others` has the sampled token's again where it is none of the most likely.
    """

    log_prob: float  # NaN where the engine has none
    top: list[float]
    others: list[float]


class Chunk(NamedTuple):
    """A part of a streamed response.

    The last one has a finish reason, and spans that cover the whole response, if the engine has
    any.
    """

    tokens: list[int]
    log_probs: list[TokenLogProbs]
    finish_reason: str | None
    spans: list[Span]


class _TopLogProb(msgspec.Struct):
    logprob: float
    rank: int | None = None


class _LogProb(msgspec.Struct):
    logprob: float
    top_logprobs: list[_TopLogProb] = []


class _LogProbs(msgspec.Struct):
    content: list[_LogProb] | None = None


class _Version(msgspec.Struct):
    version: str
    start: int
    end: int


class _Choice(msgspec.Struct):
    token_ids: list[int] | None = None
    logprobs: _LogProbs | None = None
    finish_reason: str | None = None
    weight_versions: list[_Version] | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice]


_answers = msgspec.json.Decoder(_Answer)


def _read(raw: bytes) -> tuple[_Choice, list[int], list[_LogProb]]:
    """Decode an answer as (choice, its tokens, a log-prob for each)."""
    choice = _answers.decode(raw).choices[0]
    tokens = choice.token_ids or []
    entries = []
    if choice.logprobs is not None:
        entries = choice.logprobs.content or []
    if len(entries) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens with {len(entries)} log-probs")
    return choice, tokens, entries


def read_chunk(raw: bytes) -> Chunk:
    """Read an event of a stream (JSON); MsgspecError or ValueError when it is none."""
    choice, tokens, entries = _read(raw)
    log_probs = [_read_log_probs(entry) for entry in entries]
    return Chunk(tokens, log_probs, choice.finish_reason, _read_spans(choice))


def _read_log_probs(entry: _LogProb) -> TokenLogProbs:
    """Read the log-probs at one position.

    The engine lists the sampled token first, wherever it ranks, and cuts the list at the number
    that was asked for.
    """
    listed = [other for other in entry.top_logprobs if other.logprob > NO_LOG_PROB]
    others = []
    if listed and (listed[0].rank or 0) > len(listed):
        others.append(listed.pop(0).logprob)
    return TokenLogProbs(_log_prob_or_nan(entry), [other.logprob for other in listed], others)


def _log_prob_or_nan(entry: _LogProb) -> float:
    if entry.logprob <= NO_LOG_PROB:
        return nan
    return entry.logprob


def read_generation(raw: bytes) -> Generation:
    """Read the engine's answer (JSON) as a Generation.

    Raises MsgspecError or ValueError when it is no such answer.
    """
    choice, tokens, entries = _read(raw)
    log_probs = [_log_prob_or_nan(entry) for entry in entries]
    spans = cover_tokens(_read_spans(choice), len(tokens))
    return Generation(tokens, log_probs, spans, choice.finish_reason or "stop")


def cover_tokens(spans: list[Span], tokens: int) -> list[Span]:
    """Return the spans, or one of unknown weights over all `tokens` where there are none."""
    if spans or not tokens:
        return spans
    return [Span(0, tokens, UNKNOWN_VERSION)]


def _read_spans(choice: _Choice) -> list[Span]:
    return [
        Span(part.start, part.end, parse_version(part.version))
        for part in choice.weight_versions or []
        if part.end > part.start
    ]


def parse_version(version: str) -> int:
    """Parse the number of a weight version.

    vLLM's own label of the weights that it started with is UNKNOWN_VERSION.
    """
    if version.lstrip("-").isdigit():
        return int(version)
    return UNKNOWN_VERSION
