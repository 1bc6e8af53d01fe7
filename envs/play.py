"""Episodes: how one is started and closed, and how an environment's own expert plays one."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from envs.base import Environment, Episode, Expert, Split
from envs.user_errors import require_text
from envs.view import AgentView


@dataclass(frozen=True, slots=True)
class ExpertEpisode:
    """Demonstration of one task.

    `turns` are (prompt, response) texts, exactly what an agent would be asked and would answer.
    """

    task: str
    task_type: str
    success: bool
    turns: list[tuple[str, str]]


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


def close_episode(episode: Episode) -> None:
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
) -> ExpertEpisode:
    """Play task `index` of `split` by the expert. `rng` varies the wording, and little else.

    `expert_error_rate`: probability that a turn is spoilt by a wrong action, which is played but no
    turn of the demonstration. A learner will make such mistakes, and must have seen how to go on
    after them (as in DART, Laskey et al. 2017). `wasted_turn_rate`: probability that a turn is
    wasted, and demonstrated like any other. `max_turns`: turns after which an episode that does not
    end raises RuntimeError. `on_turn` is called when a turn begins.
    """
    player = _ExpertPlayer(environment, split, rng, expert_error_rate, wasted_turn_rate)
    episode = start_episode(environment, split, index, index)
    try:
        return player.play(episode, max_turns, on_turn)
    finally:
        close_episode(episode)


@dataclass(frozen=True, slots=True)
class _ExpertPlayer:
    """The expert of an environment, with the mistakes that it is to make."""

    environment: Environment
    split: Split
    rng: random.Random
    error_rate: float
    wasted_turn_rate: float

    def play(
        self, episode: Episode, max_turns: int | None, on_turn: Callable[[], None]
    ) -> ExpertEpisode:
        """Play an episode that has just been started."""
        view = self.environment.view(episode)
        expert = self.environment.expert(episode, self.rng)
        turns: list[tuple[str, str]] = []
        turn = 0
        while max_turns is None or turn < max_turns:
            turn += 1
            on_turn()
            if self._draw(self.error_rate):
                action = self._wrong_action(view.observation.admissible)
            else:
                prompt = require_text("prompt()", self.environment.prompt(view), None)
                thought, action = self._demonstrate(expert, view)
                response = self.environment.format_response(thought, action)
                turns.append((prompt, require_text("format_response()", response, None)))
            result = episode.step(action)
            if result.done:
                return ExpertEpisode(episode.task, episode.task_type, result.success, turns)
            view.record(action, result.observation)
        raise RuntimeError(
            f"the episode did not end within {max_turns:,} turns: step() has to say done=True, "
            "after env.max_turns at the latest"
        )

    def _draw(self, probability: float) -> bool:
        """True with this probability; a probability of 0 draws nothing."""
        return bool(probability) and self.rng.random() < probability

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
