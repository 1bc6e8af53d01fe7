"""The conversations of one episode that somebody else leads, and branches as he likes.

Messages that go on from an answer go on from its tokens, which are never made from text again.
Messages that go on from none, since they begin anew or say the past otherwise, are tokenized, and
are a sequence of their own to train on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

from protocol.chat_codec import Answer, ChatCodec
from protocol.chat_messages import ChatMessage
from protocol.conversation import Transcript

CodecOf = Callable[[Sequence[dict[str, Any]]], ChatCodec]
"""Makes the codec of a conversation with these tools."""


class Branch(NamedTuple):
    """A conversation up to where the policy speaks."""

    transcript: Transcript
    prompt: list[int]
    key: bytes
    """Digest of its messages."""
    rewritten: bool
    """Its past was said before, and is tokenized anew, as it is said otherwise now."""


class TranscriptTree:
    """Answers of the policy, by what was said up to them."""

    def __init__(self, codec_of: CodecOf) -> None:
        self._codec_of = codec_of
        self._answered: dict[bytes, Transcript] = {}  # by the digest of all up to the answer

    def open(self, messages: Sequence[ChatMessage], tools: Sequence[dict[str, Any]]) -> Branch:
        """Go on from the last answer among these messages that the policy gave, else begin anew.

        ValueError of a chat template that refuses them.
        """
        keys = digest_messages(messages, tools)
        for end in range(len(messages) - 1, 0, -1):
            answered = self._answered.get(keys[end])
            if answered is not None:
                transcript = answered.fork()
                breaks = transcript.breaks
                prompt = transcript.extend(messages[end:])
                return Branch(transcript, prompt, keys[-1], transcript.breaks > breaks)
        transcript = Transcript(self._codec_of(tools))
        prompt = transcript.open(messages)
        rewritten = any(message["role"] == "assistant" for message in messages)
        return Branch(transcript, prompt, keys[-1], rewritten)

    def read(
        self, branch: Branch, response: Sequence[int], shown: Callable[[Answer], ChatMessage]
    ) -> Answer:
        """Read a response to a branch's prompt, of which there may be several.

        `shown` makes of it the message that will come back if the conversation goes on.
        """
        transcript = branch.transcript.fork()
        answer, _ = transcript.read(response)
        self._answered[_extend_digest(branch.key, shown(answer))] = transcript
        return answer


class TextBranch(NamedTuple):
    """A text up to where the policy goes on."""

    text: str
    prompt: list[int]


class TextPrompter(Protocol):
    """Makes tokens of texts, and texts of tokens, as `Prompter` does."""

    @property
    def end_tokens(self) -> Sequence[int]:
        """Tokens that end a response."""
        ...

    def special_tokens(self) -> dict[int, str]:
        """Texts of the special tokens, by id."""
        ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts as they stand."""
        ...

    def decode_exactly(self, tokens: Sequence[int]) -> str:
        """Decode tokens, special ones included."""
        ...


class TextTree:
    """Texts that the policy went on from, as `TranscriptTree` has conversations."""

    def __init__(self, prompter: TextPrompter) -> None:
        self._prompter = prompter
        self._ends = {*prompter.special_tokens(), *prompter.end_tokens}
        self._written: dict[str, list[int]] = {"": []}  # tokens of a text and its answer

    def open(self, text: str) -> TextBranch:
        """Go on from the longest beginning of the text that the policy has written."""
        known = max((begun for begun in self._written if text.startswith(begun)), key=len)
        following = self._prompter.encode([text[len(known) :]])[0]
        return TextBranch(text, self._written[known] + following)

    def read(self, branch: TextBranch, response: Sequence[int], stop: str) -> tuple[str, bool]:
        """Read a response: (its text up to a stop string, whether it came to its end)."""
        tokens = list(response)
        while tokens and tokens[-1] in self._ends:
            del tokens[-1]
        text = self._prompter.decode_exactly(tokens)
        self._written[branch.text + text] = branch.prompt + tokens
        if stop:
            text = text.partition(stop)[0]
        return text, len(tokens) < len(response)


def digest_messages(
    messages: Sequence[ChatMessage], tools: Sequence[dict[str, Any]]
) -> list[bytes]:
    """Return the digests of a conversation before its first message, and after each."""
    keys = [blake2b(_to_bytes(list(tools)), digest_size=16).digest()]
    for message in messages:
        keys.append(_extend_digest(keys[-1], message))
    return keys


def _extend_digest(key: bytes, message: ChatMessage) -> bytes:
    """Digest one message more: its words and calls.

    Thoughts, and how calls are numbered, are left out: agents drop the one, and change the other.
    """
    calls = [call["function"] for call in message.get("tool_calls", ())]
    said = [message["role"], message["content"].strip(), calls]
    return blake2b(key + _to_bytes(said), digest_size=16).digest()


def _to_bytes(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
