"""Requests in OpenAI's form: what is asked for, and what cannot be had.

What a policy samples from is the run's, or the log-probs that it is trained by were another
distribution's. So parameters of sampling are ignored, and those on which an answer's form depends
are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from protocol.chat_messages import ChatMessage, build_function_call

MODEL = "policy"
"""Name of the one model that the endpoint has."""

MAX_CHOICES = 128
"""Choices of a request, at most."""

MAX_STOPS = 16
"""Stop strings of a request, at most."""

IGNORED = {
    "temperature": "sampling.temperature",
    "top_p": "sampling.temperature",
    "top_k": "sampling.temperature",
    "min_p": "sampling.temperature",
    "presence_penalty": "sampling.temperature",
    "frequency_penalty": "sampling.temperature",
    "repetition_penalty": "sampling.temperature",
    "seed": "run.seed",
    "reasoning_effort": "model.template_arguments",
    "verbosity": "model.template_arguments",
    "parallel_tool_calls": "the policy",
}
"""Parameters that are ignored -> what decides in their place."""

HARMLESS = {
    "metadata",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
}
"""Parameters that change no answer."""

REFUSED = {
    "logit_bias": "the policy would be trained on tokens that it did not choose; leave it out",
    "top_logprobs": "only the log-probs of the tokens themselves are there; leave it out",
    "functions": "functions are given as tools",
    "function_call": "functions are given as tools",
    "modalities": "there is text alone",
    "audio": "there is text alone",
    "web_search_options": "the policy has no tools but those of the request",
    "suffix": "the policy writes on, and fills nothing in",
    "echo": "the prompt is not repeated",
    "best_of": "all samples are trained on; ask for n of them",
}
"""Parameters that are refused if they ask for something -> why."""


class RequestError(Exception):
    """A request that gets no answer, in OpenAI's form; the message is for the harness's author."""

    def __init__(self, message: str, *, status: int = 400, code: str = "", param: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param

    def to_json(self) -> dict[str, Any]:
        """Return the body of the answer."""
        kind = "invalid_request_error"
        if self.status >= 500:
            kind = "server_error"
        error = {
            "message": str(self),
            "type": kind,
            "param": self.param or None,
            "code": self.code or None,
        }
        return {"error": error}


class Wanted(NamedTuple):
    """What a request wants beside its prompt."""

    choices: int = 1
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    log_probs: bool = False
    ignored: tuple[str, ...] = ()
    """Parameters of the request that count for nothing."""


class ChatRequest(NamedTuple):
    """A request for the next message of a conversation."""

    messages: list[ChatMessage]
    """In the form of chat templates."""
    tools: list[dict[str, Any]]
    wanted: Wanted


class CompletionRequest(NamedTuple):
    """A request for how a text goes on."""

    prompt: str
    wanted: Wanted


AnyRequest = ChatRequest | CompletionRequest


class _Function(msgspec.Struct):
    name: str
    arguments: str = "{}"


class _Call(msgspec.Struct):
    function: _Function
    id: str = ""
    type: str = "function"


class _Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None


class _Common(msgspec.Struct):
    model: str = MODEL
    n: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None


class _ChatBody(_Common, kw_only=True):
    messages: list[_Message]
    tools: list[dict[str, Any]] | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None


class _CompletionBody(_Common, kw_only=True):
    prompt: str | list[Any]
    logprobs: int | None = None


def read_chat_request(body: bytes) -> ChatRequest:
    """Read the body of a request for a chat completion; RequestError for what cannot be had."""
    asked, ignored = _read_body(body, _ChatBody)
    chat: Any = asked
    tools = chat.tools or []
    choice = chat.tool_choice or "auto"
    if choice == "none":
        tools = []
    elif choice != "auto":
        raise RequestError(
            "tool_choice: the policy chooses by itself, or it would be trained on what it did not "
            "choose; leave it out, or say auto or none",
            param="tool_choice",
        )
    limit = chat.max_completion_tokens
    if limit is None:
        limit = chat.max_tokens
    wanted = _read_wanted(chat, limit, bool(chat.logprobs), ignored)
    return ChatRequest(to_template_messages(chat.messages), tools, wanted)


def read_completion_request(body: bytes) -> CompletionRequest:
    """Read the body of a request for a completion; RequestError for what cannot be had."""
    asked, ignored = _read_body(body, _CompletionBody)
    completion: Any = asked
    prompt = completion.prompt
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise RequestError("prompt: one text belongs there", param="prompt")
    if (completion.logprobs or 0) > 1:
        raise RequestError(f"logprobs: {REFUSED['top_logprobs']}", param="logprobs")
    log_probs = completion.logprobs is not None
    return CompletionRequest(
        prompt, _read_wanted(completion, completion.max_tokens, log_probs, ignored)
    )


def _read_body(body: bytes, kind: type[_Common]) -> tuple[_Common, tuple[str, ...]]:
    """Read a body; returns it, and the names of what is ignored in it."""
    try:
        names = msgspec.json.decode(body, type=dict[str, Any])
        asked = msgspec.convert(names, kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the request cannot be read: {error}") from None
    known = set(kind.__struct_fields__)
    for name, value in names.items():
        if name in known or name in IGNORED or name in HARMLESS or not value:
            continue
        reason = REFUSED.get(name, "the endpoint has no such parameter; leave it out")
        raise RequestError(f"{name}: {reason}", param=name)
    if asked.model != MODEL:
        raise RequestError(
            f"the model {asked.model!r:.100} does not exist; the policy's name is {MODEL!r}",
            status=404,
            code="model_not_found",
            param="model",
        )
    return asked, tuple(name for name in IGNORED if names.get(name) is not None)


def _read_wanted(
    asked: _Common, max_tokens: int | None, log_probs: bool, ignored: tuple[str, ...]
) -> Wanted:
    """Check what both kinds of requests have."""
    form = (asked.response_format or {}).get("type", "text")
    if form != "text":
        raise RequestError(
            "response_format: the policy's words are not forced into a form, or it would be "
            "trained on what it did not choose; ask for the form in the prompt",
            param="response_format",
        )
    choices = 1 if asked.n is None else asked.n
    if not 1 <= choices <= MAX_CHOICES:
        raise RequestError(f"n: 1 to {MAX_CHOICES} belongs there, not {choices}", param="n")
    if max_tokens is not None and max_tokens < 1:
        raise RequestError(
            f"max_tokens: at least 1 belongs there, not {max_tokens}", param="max_tokens"
        )
    stops = asked.stop or []
    if isinstance(stops, str):
        stops = [stops]
    if len(stops) > MAX_STOPS or "" in stops:
        raise RequestError(
            f"stop: at most {MAX_STOPS} texts belong there, none of them empty", param="stop"
        )
    options = asked.stream_options or {}
    return Wanted(
        choices=choices,
        max_tokens=max_tokens,
        stops=tuple(stops),
        stream=bool(asked.stream),
        include_usage=bool(options.get("include_usage")),
        log_probs=log_probs,
        ignored=ignored,
    )


def to_template_messages(messages: Sequence[_Message]) -> list[ChatMessage]:
    """Make messages in the form of chat templates; RequestError for those that have none."""
    if not messages:
        raise RequestError("messages: there are none", param="messages")
    if messages[-1].role == "assistant":
        raise RequestError(
            "messages: the last one is the assistant's, and what it says next is the policy's own; "
            "end with a message of user or tool",
            param="messages",
        )
    names = {call.id: call.function.name for said in messages for call in said.tool_calls or ()}
    return [
        _to_template_message(f"messages[{number}]", message, names)
        for number, message in enumerate(messages)
    ]


def read_echo(message: Mapping[str, Any]) -> ChatMessage:
    """Return what an answer's message is when a later request has it among its messages."""
    return _to_template_message("", msgspec.convert(message, _Message), {})


def _to_template_message(name: str, message: _Message, names: Mapping[str, str]) -> ChatMessage:
    role = message.role
    if role == "developer":
        role = "system"
    if role not in ("system", "user", "assistant", "tool"):
        raise RequestError(f"{name}.role: {role!r:.100} is no role", param="messages")
    converted: dict[str, Any] = {"role": role, "content": _read_text(name, message.content)}
    if role == "assistant":
        reasoning = message.reasoning_content or message.reasoning
        if reasoning:
            converted["reasoning_content"] = reasoning
        if message.tool_calls:
            converted["tool_calls"] = [_to_template_call(call) for call in message.tool_calls]
    if role == "tool":
        call_id = message.tool_call_id or ""
        if call_id not in names:
            raise RequestError(
                f"{name}.tool_call_id: {call_id!r:.100} is of no call before it", param="messages"
            )
        converted["tool_call_id"] = call_id
        converted["name"] = names[call_id]
    return converted


def _to_template_call(call: _Call) -> dict[str, Any]:
    """Make a call whose arguments are an object; of others their text is the only argument."""
    arguments = _read_object(call.function.arguments)
    if arguments is None:
        arguments = {"unreadable": call.function.arguments}
    return build_function_call(call.function.name, call.id, arguments)


def _read_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        return value
    return None


def _read_text(name: str, content: str | list[dict[str, Any]] | None) -> str:
    """Return the text of a content, whose parts are joined; RequestError for images and sounds."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = []
    for part in content:
        text = part.get("text", part.get("refusal"))
        if not isinstance(text, str):
            kind = part.get("type")
            raise RequestError(
                f"{name}.content: there is a part of type {kind!r:.100}, and the policy reads text "
                "alone",
                param="messages",
            )
        texts.append(text)
    return "".join(texts)
