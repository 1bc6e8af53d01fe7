"""Calls of a conversation to its environment, and checks of what the environment gives."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from hashlib import blake2b
from typing import Any, cast

from actors.stage import (
    LONGEST_TOKEN,
    MAX_NAME,
    EpisodeOpening,
    StepOutcome,
    require_flag,
    require_reward,
    require_scores,
)
from envs.conversation import (
    Conversation,
    ConversationEnvironment,
    Message,
    ToolCall,
    describe_message,
    number_calls,
    to_chat_messages,
)
from envs.conversation_checks import (
    check_answer,
    check_opening,
    check_parts,
    check_reply,
    require_reply,
)
from envs.play import close_episode, start_conversation
from envs.user_errors import MAX_TEXT, require_text
from protocol.arrays import INT32, unpack
from protocol.chat_codec import Answer, ChatCodec
from protocol.conversation import Transcript
from protocol.tool_calls import to_json


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
        self.prompt_tokens = 0
        """Tokens of the newest prompt, even if too many; 0 if it was too long to be encoded."""

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
        check_parts(episode)
        task = require_text("task", episode.task)
        task_type = require_text("task_type", episode.task_type, MAX_NAME)
        self.messages = check_opening(episode.messages)
        prompt = None
        if self._fits(self.messages):
            prompt = self._limit(self._transcript.open(to_chat_messages(self.messages)))
        return EpisodeOpening(task, task_type, prompt)

    def step(self, tokens: bytes) -> StepOutcome:
        """Hand the response to the environment, up to the next prompt."""
        episode = self.episode
        anchor = self._state_key(episode)
        answer, _ = self._transcript.read(unpack(tokens, INT32).tolist())
        message = build_policy_message(answer)
        action = require_text("the policy's answer", describe_message(message))
        self.messages.append(message)
        self._turns += 1
        reply = require_reply(episode.reply(message))
        done = require_flag("done", reply.done)
        cut_off = not done and self._turns >= self._environment.max_turns
        breaks = self._transcript.breaks
        prompt = None
        if not done and not cut_off:
            prompt = self._extend(message, reply.messages)
        valid = require_flag("valid", reply.valid)
        success = require_flag("success", reply.success)
        truncated = require_flag("truncated", reply.truncated)
        return StepOutcome(
            anchor=anchor,
            action=action,
            valid=valid and answer.well_formed,
            reward=require_reward(reply.reward),
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
        numbered = number_calls(check_answer(message), calls)
        return self.codec.encode_answer(*to_chat_messages([numbered]))

    def close(self) -> None:
        """Have the episode close what it holds open, if it has started."""
        episode = self._episode
        self._episode = None
        if episode is not None:
            close_episode(episode)

    def _extend(self, message: Message, following: object) -> list[int] | None:
        """Go on with the environment's messages; None if the prompt has too many tokens."""
        messages = check_reply(following, message)
        self.messages += messages
        if not self._fits(messages):
            self.prompt_tokens = 0
            return None
        return self._limit(self._transcript.extend(to_chat_messages(messages, [message])))

    def _fits(self, messages: Sequence[Message]) -> bool:
        """Tell whether messages may fit: those that are far too long are not made into tokens."""
        return sum(map(_count_characters, messages)) <= self._max_prompt_characters

    def _limit(self, prompt: list[int]) -> list[int] | None:
        self.prompt_tokens = len(prompt)
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


def _count_characters(message: Message) -> int:
    """Count the characters of a message, with its thought and the arguments of its calls."""
    calls = sum(len(to_json(dict(call.arguments))) for call in message.tool_calls)
    return len(message.content) + len(message.reasoning) + calls


def build_policy_message(answer: Answer) -> Message:
    """Build the message that the environment gets, which may do to it what it likes."""
    calls = [
        ToolCall(call.name, deepcopy(call.arguments), call.id, call.error) for call in answer.calls
    ]
    return Message("assistant", answer.content, answer.reasoning, tuple(calls))
