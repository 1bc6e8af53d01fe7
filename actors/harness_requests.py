"""Requests of a harness, each with its prompt, and what a response says in answer."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from actors.conversation_stage import build_policy_message
from envs.conversation import describe_message, find_tool_flaw
from envs.user_errors import MAX_TEXT
from protocol.chat_codec import Answer
from protocol.chat_messages import ChatMessage
from protocol.cutting import Cut
from protocol.openai_answers import build_answer_message
from protocol.openai_requests import AnyRequest, ChatRequest, RequestError, read_echo
from protocol.transcripts import CodecOf, TextPrompter, TextTree, TranscriptTree


class ReadAnswer(NamedTuple):
    """A response as the harness and the record have it."""

    message: dict[str, Any]
    """The assistant's message; of a completion only its `content`."""
    action: str
    valid: bool


class PromptedChat:
    """A request for the next message of a conversation."""

    def __init__(self, tree: TranscriptTree, request: ChatRequest) -> None:
        """Raises RequestError for tools that are none, ValueError of a template that refuses."""
        flaw = find_tool_flaw(request.tools)
        if flaw:
            raise RequestError(flaw, param="tools")
        self._tree = tree
        self._branch = tree.open(request.messages, request.tools)
        self.prompt = self._branch.prompt
        self.rewritten = self._branch.rewritten
        told = [message for message in request.messages if message["role"] != "assistant"]
        self.anchor = _shorten("\n".join(f"{said['role']}: {said['content']}" for said in told))

    def read(self, tokens: Sequence[int], cut: Cut) -> ReadAnswer:
        """Read a response to the prompt."""
        message: dict[str, Any] = {}

        def show(answer: Answer) -> ChatMessage:
            message.update(_build_message(answer, cut))
            return read_echo(message)

        answer = self._tree.read(self._branch, tokens, show)
        action = describe_message(build_policy_message(answer))
        return ReadAnswer(message, action, answer.well_formed or bool(cut.stop))


class PromptedText:
    """A request for how a text goes on."""

    rewritten = False

    def __init__(self, tree: TextTree, text: str) -> None:
        self._tree = tree
        self._branch = tree.open(text)
        self.prompt = self._branch.prompt
        self.anchor = _shorten(text)

    def read(self, tokens: Sequence[int], cut: Cut) -> ReadAnswer:
        """Read a response to the prompt."""
        text, ended = self._tree.read(self._branch, tokens, cut.stop)
        return ReadAnswer({"content": text}, text, ended or bool(cut.stop))


class RequestReader:
    """Makes prompts of the requests of one episode, which go on from each other."""

    def __init__(self, prompter: TextPrompter, codec_of: CodecOf) -> None:
        self._chats = TranscriptTree(codec_of)
        self._texts = TextTree(prompter)

    def prompt(self, request: AnyRequest) -> PromptedChat | PromptedText:
        """Make the prompt of a request; RequestError where it has none."""
        try:
            if isinstance(request, ChatRequest):
                prompted = PromptedChat(self._chats, request)
            else:
                prompted = PromptedText(self._texts, request.prompt)
        except ValueError as error:
            raise RequestError(f"messages: {error}", param="messages") from None
        if not prompted.prompt:
            raise RequestError("prompt: it is empty", param="prompt")
        return prompted


def count_characters(request: AnyRequest) -> int:
    """Count the characters that a request asks the policy to read."""
    if isinstance(request, ChatRequest):
        return sum(len(message["content"]) for message in request.messages)
    return len(request.prompt)


def _build_message(answer: Answer, cut: Cut) -> dict[str, Any]:
    """Build the message of an answer, without the stop string and what comes after it."""
    content = answer.content
    if cut.stop:
        content = content.partition(cut.stop)[0]
    return build_answer_message(answer._replace(content=content))


def _shorten(text: str) -> str:
    """Return a text that can be sent, or a digest of one that cannot."""
    if len(text) > MAX_TEXT:
        return blake2b(text.encode(), digest_size=16).hexdigest()
    return text
