"""Answers in OpenAI's form."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from protocol.chat_codec import Answer
from protocol.messages import StopReason
from protocol.openai_requests import MODEL

NO_LOG_PROB = -9999.0
"""Stands for the log-prob of a token that has none, as OpenAI's own endpoint has it."""


class SampledToken(NamedTuple):
    """A token of an answer."""

    text: str
    log_prob: float


class Choice(NamedTuple):
    """One answer to a request."""

    message: dict[str, Any]
    """The assistant's message; of a completion only its `content`."""
    finish_reason: str
    completion_tokens: int
    tokens: Sequence[SampledToken] = ()
    """The tokens of the answer, where the request asks for their log-probs."""


class Answered(NamedTuple):
    """All answers to a request."""

    choices: list[Choice]
    prompt_tokens: int

    @property
    def usage(self) -> dict[str, int]:
        """Return the tokens of the prompt, of the answers, and of both."""
        completion_tokens = sum(choice.completion_tokens for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
        }


def build_answer_message(answer: Answer) -> dict[str, Any]:
    """Build the assistant's message of an answer.

    The arguments of a call that cannot be read are what the policy wrote.
    """
    message: dict[str, Any] = {"role": "assistant", "content": answer.content, "refusal": None}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    calls = []
    for call in answer.calls:
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        if call.error:
            arguments = call.text
        function = {"name": call.name or "unknown", "arguments": arguments}
        calls.append({"id": call.id, "type": "function", "function": function})
    if calls:
        message["content"] = answer.content or None
        message["tool_calls"] = calls
    return message


def find_finish_reason(stop: StopReason, is_cut: bool, message: dict[str, Any]) -> str:
    """Say why an answer ended; `is_cut`: at the request's own max_tokens."""
    if is_cut or stop is not StopReason.END:
        return "length"
    if message.get("tool_calls"):
        return "tool_calls"
    return "stop"


def build_chat_completion(answered: Answered, name: str, created: int) -> dict[str, Any]:
    """Build the answer to a request for a chat completion that is not streamed."""
    choices = [
        {
            "index": number,
            "message": choice.message,
            "finish_reason": choice.finish_reason,
            "logprobs": build_chat_log_probs(choice.tokens),
        }
        for number, choice in enumerate(answered.choices)
    ]
    head = _build_head(name, created, "chat.completion")
    return head | {"choices": choices, "usage": answered.usage}


def build_chat_chunks(
    answered: Answered, name: str, created: int, include_usage: bool
) -> Iterator[dict[str, Any]]:
    """Build the chunks of a chat completion that is streamed, once its answers are complete."""
    for number, choice in enumerate(answered.choices):
        log_probs = build_chat_log_probs(choice.tokens)
        for delta in _split_message(choice.message):
            yield _build_chunk(
                name, created, {"index": number, "delta": delta, "logprobs": log_probs}
            )
            log_probs = None
        end = {"index": number, "delta": {}, "finish_reason": choice.finish_reason}
        yield _build_chunk(name, created, end)
    if include_usage:
        usage = {"choices": [], "usage": answered.usage}
        yield _build_chunk(name, created, None) | usage


def _split_message(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the parts of a message, as clients put them together."""
    yield {"role": "assistant", "content": message["content"] or ""}
    if message.get("reasoning_content"):
        yield {"reasoning_content": message["reasoning_content"]}
    for number, call in enumerate(message.get("tool_calls", ())):
        function = call["function"]
        yield {"tool_calls": [call | {"index": number, "function": function | {"arguments": ""}}]}
        arguments = {"arguments": function["arguments"]}
        yield {"tool_calls": [{"index": number, "function": arguments}]}


def _build_chunk(name: str, created: int, choice: dict[str, Any] | None) -> dict[str, Any]:
    choices = [{"finish_reason": None} | choice] if choice else []
    return _build_head(name, created, "chat.completion.chunk") | {"choices": choices}


def _build_head(name: str, created: int, kind: str) -> dict[str, Any]:
    return {"id": name, "object": kind, "created": created, "model": MODEL}


def build_completion(answered: Answered, name: str, created: int) -> dict[str, Any]:
    """Build the answer to a request for a completion; the only chunk of one that is streamed."""
    choices = [
        {
            "index": number,
            "text": choice.message["content"],
            "finish_reason": choice.finish_reason,
            "logprobs": build_completion_log_probs(choice.tokens),
        }
        for number, choice in enumerate(answered.choices)
    ]
    head = _build_head(name, created, "text_completion")
    return head | {"choices": choices, "usage": answered.usage}


def build_completion_log_probs(tokens: Sequence[SampledToken]) -> dict[str, Any] | None:
    """Build the log-probs of a completion; None where nobody asked for them."""
    if not tokens:
        return None
    ends = itertools.accumulate(len(token.text) for token in tokens)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.log_prob for token in tokens],
        "top_logprobs": None,
        "text_offset": [0, *ends][: len(tokens)],
    }


def build_chat_log_probs(tokens: Sequence[SampledToken]) -> dict[str, Any] | None:
    """Build the log-probs of a chat's answer; None where nobody asked for them."""
    if not tokens:
        return None
    content = [
        {
            "token": token.text,
            "logprob": token.log_prob,
            "bytes": list(token.text.encode()),
            "top_logprobs": [],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}
