"""Playing an episode to its end by the environment's own expert: demonstrations to learn from."""

from __future__ import annotations

import inspect
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

from envs.base import Environment, Episode, Split


@dataclass(frozen=True, slots=True)
class ExpertEpisode:
    """`turns` are (prompt, response) texts, exactly what an agent would be asked and would
    answer."""

    task: str
    task_type: str
    success: bool
    turns: list[tuple[str, str]]


def start_episode(environment: Environment, split: Split, index: int, seed: int) -> Episode:
    """Start a task, with the seed if the environment's `start` takes one."""
    if _takes_seed(environment):
        return environment.start(split, index, seed)
    return environment.start(split, index)


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


def expert_episode(
    environment: Environment,
    split: Split,
    index: int,
    rng: random.Random,
    *,
    slips: float = 0.0,
    dawdling: float = 0.0,
    limit: int | None = None,
    on_turn: Callable[[], None] = lambda: None,
) -> ExpertEpisode:
    """Play task `index` of `split`. `rng` varies the wording, and little else.

    `slips`: probability that a turn is spoilt by a wrong action, which is played but no turn of the
    demonstration. A learner will make such mistakes, and must have seen how to go on after them (as
    in DART, Laskey et al. 2017). `dawdling`: probability that a turn is wasted, and demonstrated
    like any other. `limit`: turns after which an episode that does not end raises RuntimeError.
    `on_turn` is called when a turn begins.
    """
    episode = start_episode(environment, split, index, index)
    try:
        return _played_by_expert(environment, episode, split, rng, slips, dawdling, limit, on_turn)
    finally:
        close_episode(episode)


def _played_by_expert(
    environment: Environment,
    episode: Episode,
    split: Split,
    rng: random.Random,
    slips: float,
    dawdling: float,
    limit: int | None,
    on_turn: Callable[[], None],
) -> ExpertEpisode:
    view = environment.view(episode)
    expert = environment.expert(episode, rng)
    turns: list[tuple[str, str]] = []
    for _ in itertools.repeat(None) if limit is None else range(limit):
        on_turn()
        if slips and rng.random() < slips:
            action = _wrong_action(environment, split, view.observation.admissible, rng)
        else:
            prompt = environment.prompt(view)
            thought, action = (
                expert.waste_turn(view)
                if dawdling and rng.random() < dawdling
                else expert.act(view)
            )
            turns.append((prompt, environment.respond(thought, action)))
        result = episode.step(action)
        if result.done:
            return ExpertEpisode(episode.task, episode.task_type, result.success, turns)
        view.record(action, result.observation)
    raise RuntimeError(
        f"the episode did not end within {limit:,} turns: step() has to say done=True, after "
        "env.max_turns at the latest"
    )


def _wrong_action(
    environment: Environment, split: Split, admissible: tuple[str, ...], rng: random.Random
) -> str:
    """One that is possible here, or, as often, one from another task, which mostly is not.

    Where any text is an action: what the expert would do first in another task.
    """
    if admissible and rng.random() < 0.5:
        return rng.choice(admissible)
    other = start_episode(environment, split, rng.randrange(environment.size(split)), 0)
    try:
        possible = other.observation.admissible or [
            environment.expert(other, rng).act(environment.view(other))[1]
        ]
    finally:
        close_episode(other)
    return rng.choice(possible)
