"""Playing an episode to its end by the environment's own expert: demonstrations to learn from."""

from __future__ import annotations

import random
from dataclasses import dataclass

from envs.base import Environment, Split
from envs.response import format_think_action


@dataclass(frozen=True, slots=True)
class ExpertEpisode:
    """`turns` are (prompt, response) texts, exactly what an agent would be asked and would answer."""

    task: str
    task_type: str
    success: bool
    turns: list[tuple[str, str]]


def expert_episode(environment: Environment, split: Split, index: int, rng: random.Random) -> ExpertEpisode:
    """Play task `index` of `split`. `rng` varies the wording, and little else."""
    episode = environment.start(split, index)
    view = environment.view(episode)
    expert = environment.expert(episode, rng)
    turns: list[tuple[str, str]] = []
    while True:
        prompt = environment.prompt(view)
        thought, action = expert.act(view)
        turns.append((prompt, format_think_action(thought, action)))
        result = episode.step(action)
        if result.done:
            return ExpertEpisode(episode.task, episode.task_type, result.success, turns)
        view.record(action, result.observation)
