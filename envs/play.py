"""Episodes: how one is started and closed, and how an environment's own expert plays one."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from envs.base import Environment, Episode, Expert, Split
from envs.conversation import (
    Conversation,
    ConversationEnvironment,
    ConversationExpert,
    ConversationTurn,
    Message,
    is_conversation,
    number_calls,
)
from envs.conversation_checks import (
    check_answer,
    check_opening,
    check_parts,
    check_reply,
    require_reply,
)
from envs.user_errors import require_text
from envs.view import AgentView


@dataclass(frozen=True, slots=True)
class ExpertEpisode:
    """Demonstration of one task.

    `turns` are (prompt, response) texts, exactly what an agent would be asked and would answer. Of
    an environment that talks in messages there is a `conversation` in their place, and its `tools`.
    """

    task: str
    task_type: str
    success: bool
    turns: list[tuple[str, str]]
    conversation: list[ConversationTurn] = field(default_factory=list)
    tools: Sequence[Mapping[str, Any]] = ()
    reward: float = 0.0
    """Sum over its turns."""
    scores: Mapping[str, float] = field(default_factory=dict)


def start_episode(environment: Environment, split: Split, index: int, seed: int) -> Episode:
    """Start a task, with the seed if the environment's `start` takes one."""
    if _takes_seed(environment):
        return environment.start(split, index, seed)
    start_without_seed = cast(Callable[[Split, int], Episode], environment.start)
    return start_without_seed(split, index)


def _takes_seed(environment: Environment) -> bool:
    try:
        inspect.signature(environment.start).bind("train", 0, 0)
    except TypeError:
        return False
    except ValueError:  # written in C, which says nothing of its arguments
        return True
    return True


def start_conversation(
    environment: ConversationEnvironment, split: Split, index: int, seed: int
) -> Conversation:
    """Start a task of an environment that talks in messages, as `start_episode` does."""
    return cast(Conversation, start_episode(cast(Environment, environment), split, index, seed))


def make_expert(environment: object, episode: object, rng: random.Random) -> Any:
    """Make the expert of an episode; ValueError if nobody can demonstrate it."""
    make = getattr(environment, "expert", None)
    if make is None:
        raise ValueError(f"env.name: {getattr(environment, 'name', environment)} has no expert")
    return make(episode, rng)


def close_episode(episode: Episode | Conversation) -> None:
    """Let go of what the episode holds open, if it holds anything."""
    close = getattr(episode, "close", None)
    if callable(close):
        close()


def play_expert_episode(
    environment: Environment,
    split: Split,
    index: int,
    rng: random.Random,
    *,
    expert_error_rate: float = 0.0,
    wasted_turn_rate: float = 0.0,
    max_turns: int | None = None,
    on_turn: Callable[[], None] = lambda: None,
    seed: int | None = None,
) -> ExpertEpisode:
    """Play task `index` of `split` by the expert. `rng` varies the wording, and little else.

    `expert_error_rate`: probability that a turn is spoilt by a wrong action, which is played but no
    turn of the demonstration. A learner will make such mistakes, and must have seen how to go on
    after them (as in DART, Laskey et al. 2017). `wasted_turn_rate`: probability that a turn is
    wasted, and demonstrated like any other. `max_turns`: turns after which an episode that does not
    end raises RuntimeError. `on_turn` is called when a turn begins. `seed` is the episode's, by
    default its index.
    """
    player_class: Any = _ExpertPlayer
    if is_conversation(environment):
        player_class = _ConversationPlayer
    player = player_class(environment, split, rng, expert_error_rate, wasted_turn_rate)
    episode = start_episode(environment, split, index, index if seed is None else seed)
    try:
        return player.play(episode, max_turns or sys.maxsize, on_turn)
    finally:
        close_episode(episode)


@dataclass(frozen=True, slots=True)
class _Player:
    """The expert of an environment, with the mistakes that it is to make."""

    environment: Any
    split: Split
    rng: random.Random
    error_rate: float
    wasted_turn_rate: float

    def _draw(self, probability: float) -> bool:
        """True with this probability; a probability of 0 draws nothing."""
        return bool(probability) and self.rng.random() < probability


class _ExpertPlayer(_Player):
    """The expert of an environment that shows a prompt each turn."""

    def play(self, episode: Episode, max_turns: int, on_turn: Callable[[], None]) -> ExpertEpisode:
        """Play an episode that has just been started."""
        view = self.environment.view(episode)
        expert = self.environment.expert(episode, self.rng)
        turns: list[tuple[str, str]] = []
        reward = 0.0
        for _ in range(max_turns):
            on_turn()
            if self._draw(self.error_rate):
                action = self._wrong_action(view.observation.admissible)
            else:
                prompt = require_text("prompt()", self.environment.prompt(view), None)
                thought, action = self._demonstrate(expert, view)
                response = self.environment.format_response(thought, action)
                turns.append((prompt, require_text("format_response()", response, None)))
            result = episode.step(action)
            reward += result.reward
            if result.done:
                return ExpertEpisode(
                    task=episode.task,
                    task_type=episode.task_type,
                    success=result.success,
                    turns=turns,
                    reward=reward,
                    scores=dict(episode.scores),
                )
            view.record(action, result.observation)
        raise RuntimeError(
            f"the episode did not end within {max_turns:,} turns: step() has to say done=True, "
            "after env.max_turns at the latest"
        )

    def _demonstrate(self, expert: Expert, view: AgentView) -> tuple[str, str]:
        """(thought, action) of a turn that is demonstrated, be it a wasted one."""
        if self._draw(self.wasted_turn_rate):
            return expert.waste_turn(view)
        return expert.act(view)

    def _wrong_action(self, admissible: tuple[str, ...]) -> str:
        """One that is possible here, or, as often, one from another task, which mostly is not.

        Where any text is an action, it is what the expert would do first in another task.
        """
        if admissible and self.rng.random() < 0.5:
            return self.rng.choice(admissible)
        index = self.rng.randrange(self.environment.size(self.split))
        other = start_episode(self.environment, self.split, index, 0)
        try:
            possible = other.observation.admissible or [self._first_action(other)]
        finally:
            close_episode(other)
        return self.rng.choice(possible)

    def _first_action(self, episode: Episode) -> str:
        """The action that the expert would do first in an episode."""
        expert = self.environment.expert(episode, self.rng)
        _, action = expert.act(self.environment.view(episode))
        return action


class _ConversationPlayer(_Player):
    """The expert of an environment that talks in messages."""

    def play(
        self, episode: Conversation, max_turns: int, on_turn: Callable[[], None]
    ) -> ExpertEpisode:
        """Play an episode that has just been started, until it is over or cut off."""
        check_parts(episode)
        expert = make_expert(self.environment, episode, self.rng)
        said = check_opening(episode.messages)
        new = tuple(said)
        turns: list[ConversationTurn] = []
        calls = sum(len(message.tool_calls) for message in said)
        reward = 0.0
        success = False
        for _ in range(min(max_turns, self.environment.max_turns)):
            on_turn()
            taught = not self._draw(self.error_rate)
            answer = check_answer(self._choose(expert, list(said), taught))
            answer = number_calls(answer, calls)
            calls += len(answer.tool_calls)
            turns.append(ConversationTurn(new, answer, taught))
            reply = require_reply(episode.reply(answer))
            reward += reply.reward
            if reply.done:
                success = reply.success
                break
            new = tuple(check_reply(reply.messages, answer))
            said += [answer, *new]
        return ExpertEpisode(
            task=episode.task,
            task_type=episode.task_type,
            success=success,
            turns=[],
            conversation=turns,
            tools=self.environment.tools,
            reward=reward,
            scores=dict(episode.scores),
        )

    def _choose(self, expert: ConversationExpert, messages: list[Message], taught: bool) -> Message:
        """What the expert says; its first words in another task where it is to be wrong."""
        if not taught:
            return self._first_answer()
        if self._draw(self.wasted_turn_rate):
            return expert.waste_turn(messages)
        return expert.act(messages)

    def _first_answer(self) -> Message:
        index = self.rng.randrange(self.environment.size(self.split))
        other = start_conversation(self.environment, self.split, index, 0)
        try:
            return make_expert(self.environment, other, self.rng).act(check_opening(other.messages))
        finally:
            close_episode(other)
