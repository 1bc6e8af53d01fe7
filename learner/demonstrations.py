"""The environment's expert, as token sequences to imitate."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence

import numpy as np

from config import Config
from envs.play import expert_episode
from envs.registry import make_environment
from learner.samples import Sample
from protocol.prompting import Prompter

log = logging.getLogger(__name__)

FIRST_TASKS = 64
"""How many of the first tasks may fail without one that does not."""

Turns = list[tuple[str, str]]
"""(prompt, response) texts of one episode."""


def demonstrations(config: Config, episodes: int) -> Iterator[Turns]:
    """Those episodes that the expert won, of the first `episodes` tasks of a shuffle of the training tasks."""
    settings, seed = config.warm_start, config.run.seed
    environment = make_environment(config.env.name, **config.environment_settings() | {"max_turns": settings.max_turns})
    size = environment.size("train")
    failed = 0
    for number, index in enumerate(random.Random(seed).sample(range(size), min(episodes, size))):
        rng = random.Random(f"{seed}:{index}")
        try:
            played = expert_episode(environment, "train", index, rng, slips=settings.slips, dawdling=settings.dawdling)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            failed += 1
            log.warning("training task %d cannot be demonstrated", index, exc_info=True)
            if failed == number + 1 >= min(FIRST_TASKS, episodes, size):
                raise RuntimeError(f"warm_start.episodes: none of the first {failed} tasks can be demonstrated") from error
            continue
        if played.success:
            yield played.turns


class TurnTokenizer:
    """A turn's texts to a sample of supervised learning, in the policy's chat format."""

    def __init__(self, prompter: Prompter, turn_end: str) -> None:
        self._prompter = prompter
        self._turn_end = turn_end

    def samples(self, turns: Sequence[tuple[str, str]]) -> list[Sample]:
        """One a turn. Every token of the response is learned, the end of the turn included."""
        prompts = self._prompter.prompts([prompt for prompt, _ in turns])
        responses = self._prompter.tokens([response + self._turn_end for _, response in turns])
        return [
            _imitated(np.array(prompt, dtype=np.int32), np.array(response, dtype=np.int32))
            for prompt, response in zip(prompts, responses, strict=True)
        ]


def _imitated(prompt: np.ndarray, response: np.ndarray) -> Sample:
    length = len(response)
    return Sample(
        prompt=prompt, response=response, mask=np.ones(length, bool), log_mu=np.zeros(length, np.float32),
        age=np.zeros(length, np.int32), advantage=1.0,
    )  # fmt: skip
