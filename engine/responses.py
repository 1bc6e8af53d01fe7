"""What an engine answers to a turn, whole or streamed: vLLM's JSON of /inference/v1/generate, as
far as we read it."""

from __future__ import annotations

from math import nan
from typing import NamedTuple

import msgspec

from engine.constants import UNKNOWN_VERSION
from protocol.messages import Span

NO_LOG_PROB = -9999.0
"""What vLLM writes for a log-prob that is NaN or -inf."""


class Generation(msgspec.Struct, frozen=True):
    """One response."""

    tokens: list[int]
    log_probs: list[
        float
    ]  # of the sampled tokens, at the sampling temperature; NaN where the engine has none
    spans: list[Span]  # which weights produced which tokens; covers all tokens, in order
    finish_reason: str  # "stop", "length", "abort" or "repetition"


class TokenLogProbs(NamedTuple):
    """Of one sampled token: its own, those of the most likely tokens, and its own again where it is
    none of them."""

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
    """(Choice, its tokens, a log-prob for each)."""
    choice = _answers.decode(raw).choices[0]
    tokens = choice.token_ids or []
    entries = (choice.logprobs.content if choice.logprobs is not None else None) or []
    if len(entries) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens with {len(entries)} log-probs")
    return choice, tokens, entries


def read_chunk(raw: bytes) -> Chunk:
    """An event of a stream (JSON) as a Chunk. Raises MsgspecError or ValueError when it is none."""
    choice, tokens, entries = _read(raw)
    return Chunk(
        tokens, [_log_probs(entry) for entry in entries], choice.finish_reason, _spans(choice)
    )


def _log_probs(entry: _LogProb) -> TokenLogProbs:
    """The engine lists the sampled token first, wherever it ranks, and cuts the list at what was
    asked for."""
    known = [other for other in entry.top_logprobs if other.logprob > NO_LOG_PROB]
    outside = [known[0].logprob] if known and (known[0].rank or 0) > len(known) else []
    return TokenLogProbs(
        nan if entry.logprob <= NO_LOG_PROB else entry.logprob,
        [o.logprob for o in known[len(outside) :]],
        outside,
    )


def read_generation(raw: bytes) -> Generation:
    """The engine's answer (JSON) as a Generation.

    Raises MsgspecError or ValueError when it is no such answer.
    """
    choice, tokens, entries = _read(raw)
    log_probs = [nan if entry.logprob <= NO_LOG_PROB else entry.logprob for entry in entries]
    return Generation(
        tokens, log_probs, cover_tokens(_spans(choice), len(tokens)), choice.finish_reason or "stop"
    )


def cover_tokens(spans: list[Span], tokens: int) -> list[Span]:
    """The spans, or one of unknown weights over all `tokens` where the engine has none."""
    return spans or ([Span(0, tokens, UNKNOWN_VERSION)] if tokens else [])


def _spans(choice: _Choice) -> list[Span]:
    return [
        Span(v.start, v.end, version_number(v.version))
        for v in choice.weight_versions or []
        if v.end > v.start
    ]


def version_number(version: str) -> int:
    """The number of a weight version; UNKNOWN_VERSION for vLLM's own label of the weights it
    started with."""
    return int(version) if version.lstrip("-").isdigit() else UNKNOWN_VERSION
