"""The tokens of a conversation: what the policy sampled is never tokenized again.

The prompt of a turn is that of the turn before, the tokens that the policy sampled, and the tokens
of what comes next. A template may rewrite what was said: most drop thoughts of earlier turns. With
`past_thoughts` "keep" the prompt goes on all the same; with "template" it is rendered anew.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from protocol.chat_codec import Answer, ChatCodec
from protocol.chat_messages import ChatMessage, build_function_call
from protocol.prompting import Prompter


def build_codec(prompter: Prompter, tools: Sequence[Mapping[str, Any]]) -> ChatCodec:
    """Build the codec of a run's conversations; ValueError for a template that cannot hold them."""
    chat = prompter.chat
    return ChatCodec(
        prompter,
        tools,
        past_thoughts=chat.past_thoughts,
        tool_format=chat.tool_format,
        system_prompt=chat.system_prompt,
        end_tokens=chat.end_tokens,
    )


class Transcript:
    """The tokens of one conversation, as the policy has read and written them."""

    def __init__(self, codec: ChatCodec) -> None:
        self.codec = codec
        self._messages: list[ChatMessage] = []
        self._prompt: list[int] = []
        self._response: list[int] = []
        self._answer: ChatMessage = {}
        self._calls = 0
        self.breaks = 0
        """How often the template has rewritten the past, so that a prompt began anew."""

    @property
    def messages(self) -> Sequence[ChatMessage]:
        """All messages so far, an answer that was read included."""
        return tuple(self._messages)

    def fork(self) -> Transcript:
        """Make another one with the same past, which goes on by itself."""
        return copy.copy(self)  # whose lists are replaced, and never changed

    def open(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Begin with these messages; returns the first prompt."""
        self._messages = list(messages)
        self._calls = sum(len(message.get("tool_calls", ())) for message in messages)
        self._prompt = self.codec.encode_prompt(messages)
        return self._prompt

    def read(self, response: Sequence[int]) -> tuple[Answer, ChatMessage]:
        """Read the response to the last prompt; returns it, and the message that it is."""
        answer = self.codec.read_answer(response)
        calls = [
            call._replace(id=call_id(number))
            for number, call in enumerate(answer.calls, self._calls)
        ]
        answer = answer._replace(calls=calls)
        self._calls += len(calls)
        self._response = list(response)
        self._answer = build_message(answer)
        return answer, self._answer

    def extend(self, following: Sequence[ChatMessage]) -> list[int]:
        """Go on after the response that was read; returns the next prompt."""
        history = self._messages
        self._messages = [*history, self._answer, *following]
        codec = self.codec
        if codec.past_thoughts == "template" and codec.rewrites(history, self._answer, following):
            self.breaks += 1
            self._prompt = codec.encode_prompt(self._messages)
            return self._prompt
        after = codec.encode_continuation(history, self._answer, following)
        if codec.turn_end and self._response and self._response[-1:] == after[:1]:
            after = after[1:]
        self._prompt = [*self._prompt, *self._response, *after]
        return self._prompt


def call_id(number: int) -> str:
    """Return the id of an episode's call number `number`: nine letters, as some templates ask."""
    return f"call{number:05}"


def build_message(answer: Answer) -> dict[str, Any]:
    """Build the message that an answer is.

    A call that cannot be read is one whose only argument is what was written.
    """
    message: dict[str, Any] = {"role": "assistant", "content": answer.content}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    calls = []
    for call in answer.calls:
        arguments = call.arguments
        if call.error:
            arguments = {"unreadable": call.text}
        calls.append(build_function_call(call.name or "unknown", call.id, arguments))
    if calls:
        message["tool_calls"] = calls
    return message
