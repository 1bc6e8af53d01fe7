"""Calls of a conversation to its environment, and checks of what the environment gives."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, cast

from actors.stage import (
    LONGEST_TOKEN,
    MAX_NAME,
    EpisodeOpening,
    StepOutcome,
    read_attribute,
    require_flag,
    require_reward,
    require_scores,
)
from envs.conversation import (
    ROLES,
    Conversation,
    ConversationEnvironment,
    Message,
    ToolCall,
    describe_message,
    number_calls,
    to_chat_message,
)
from envs.play import close_episode, start_conversation
from envs.user_errors import MAX_TEXT, UserCodeError, describe_value, require_text
from protocol.arrays import INT32, unpack
from protocol.chat_codec import Answer, ChatCodec
from protocol.conversation import Transcript


class ConversationStage:
    """One episode of an environment that talks in messages; see `Stage`."""

    def __init__(self, environment: object, codec: ChatCodec, max_prompt_tokens: int) -> None:
        self._environment = cast(ConversationEnvironment, environment)
        self.codec = codec
        self._transcript = Transcript(codec)
        self._max_prompt_tokens = max_prompt_tokens
        self._max_prompt_characters = max_prompt_tokens * LONGEST_TOKEN
        self._episode: Conversation | None = None
        self._turns = 0
        self.messages: list[Message] = []
        """All that was said so far."""

    @property
    def episode(self) -> Conversation:
        """The episode that is played; RuntimeError before its start and after its end."""
        if self._episode is None:
            raise RuntimeError("an episode that has not started, or is closed")
        return self._episode

    def start(self, split: Any, index: int, seed: int) -> EpisodeOpening:
        """Start the task, up to the first prompt."""
        episode = start_conversation(self._environment, split, index, seed)
        self._episode = episode
        task = require_text("task", episode.task)
        task_type = require_text("task_type", episode.task_type, MAX_NAME)
        messages = check_messages("messages", episode.messages)
        self.messages += messages
        prompt = None
        if self._fits(messages):
            prompt = self._limit(self._transcript.open(list(map(to_chat_message, messages))))
        return EpisodeOpening(task, task_type, prompt)

    def step(self, tokens: bytes) -> StepOutcome:
        """Hand the response to the environment, up to the next prompt."""
        episode = self.episode
        anchor = self._state_key(episode)
        answer, _ = self._transcript.read(unpack(tokens, INT32).tolist())
        message = _build_message(answer)
        self.messages.append(message)
        self._turns += 1
        reply = episode.reply(message)
        done = require_flag("done", read_attribute("reply()", reply, "done"))
        cut_off = not done and self._turns >= self._environment.max_turns
        breaks = self._transcript.breaks
        prompt = None
        if not done and not cut_off:
            prompt = self._extend(message, read_attribute("reply()", reply, "messages"))
        valid = require_flag("valid", read_attribute("reply()", reply, "valid"))
        success = require_flag("success", read_attribute("reply()", reply, "success"))
        truncated = require_flag("truncated", read_attribute("reply()", reply, "truncated"))
        return StepOutcome(
            anchor=anchor,
            action=require_text("the policy's answer", describe_message(message)),
            valid=valid and answer.well_formed,
            reward=require_reward(read_attribute("reply()", reply, "reward")),
            done=done or cut_off,
            success=done and success,
            truncated=cut_off or (done and truncated and not success),
            scores=require_scores(episode.scores),
            prompt=prompt,
            rewritten=prompt is not None and self._transcript.breaks > breaks,
        )

    def encode_answer(self, message: Message) -> list[int]:
        """Encode what a policy has to say for this message, by whoever takes its place."""
        calls = sum(len(said.tool_calls) for said in self.messages)
        return self.codec.encode_answer(to_chat_message(number_calls(message, calls)))

    def close(self) -> None:
        """Have the episode close what it holds open, if it has started."""
        episode = self._episode
        self._episode = None
        if episode is not None:
            close_episode(episode)

    def _extend(self, message: Message, following: object) -> list[int] | None:
        """Go on with the environment's messages; None if the prompt has too many tokens."""
        messages = check_messages("reply().messages", following, message)
        self.messages += messages
        if not self._fits(messages):
            return None
        names = {call.id: call.name for call in message.tool_calls}
        chat_messages = [to_chat_message(said, names) for said in messages]
        return self._limit(self._transcript.extend(chat_messages))

    def _fits(self, messages: Sequence[Message]) -> bool:
        """Tell whether messages may fit: those that are far too long are not made into tokens."""
        return sum(len(message.content) for message in messages) <= self._max_prompt_characters

    def _limit(self, prompt: list[int]) -> list[int] | None:
        if len(prompt) > self._max_prompt_tokens:
            return None
        return prompt

    def _state_key(self, episode: Conversation) -> str:
        """The episode's own key; else all that the policy was told so far."""
        own = getattr(episode, "state_key", None)
        if own is not None:
            return require_text("state_key()", own())
        told = [said for said in self.messages if said.role != "assistant"]
        text = "\n".join(f"{said.role}: {said.content}" for said in told)
        if len(text) > MAX_TEXT:
            return blake2b(text.encode(), digest_size=16).hexdigest()
        return text


def check_messages(name: str, messages: object, answered: Message | None = None) -> list[Message]:
    """Return what an environment says, if it can be said; UserCodeError for other things.

    `answered` is the policy's message that they follow; None for the first ones. A result of a tool
    gets the id of the call that it answers, where there is one call.
    """
    if not isinstance(messages, list | tuple):
        raise UserCodeError(
            f"the environment gave {describe_value(messages)} as {name}, where a list of messages "
            "belongs"
        )
    if not messages:
        raise UserCodeError(
            f"the environment gave no messages as {name}: the policy has nothing to answer; give "
            "one, or say done=True"
        )
    checked = [_check_message(f"{name}[{i}]", said, answered) for i, said in enumerate(messages)]
    if checked[-1].role == "assistant":
        raise UserCodeError(
            f"the last of {name} is the assistant's, and what it says next is the policy's own; "
            "end with a message of user or tool"
        )
    return checked


def _check_message(name: str, message: Any, answered: Message | None) -> Message:
    role = read_attribute(name, message, "role")
    if role not in ROLES:
        raise UserCodeError(
            f"the environment gave {describe_value(role)} as {name}.role, which is one of "
            f"{', '.join(ROLES)}"
        )
    require_text(f"{name}.content", read_attribute(name, message, "content"), None)
    if answered is None:
        return message
    if role == "assistant":
        raise UserCodeError(
            f"{name} is the assistant's: what was said before cannot be said otherwise, and what "
            "it says next is the policy's own"
        )
    if role != "tool":
        return message
    ids = [call.id for call in answered.tool_calls]
    call_id = read_attribute(name, message, "tool_call_id")
    if not call_id and len(ids) == 1:
        return Message("tool", message.content, tool_call_id=ids[0])
    if call_id not in ids:
        raise UserCodeError(
            f"{name}.tool_call_id is {describe_value(call_id)}, and the policy's calls have "
            f"{', '.join(ids) or 'none: it called no tool'}"
        )
    return message


def _build_message(answer: Answer) -> Message:
    """Build the message that the environment gets for the policy's answer."""
    calls = [ToolCall(call.name, call.arguments, call.id, call.error) for call in answer.calls]
    return Message("assistant", answer.content, answer.reasoning, tuple(calls))
