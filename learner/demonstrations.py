"""The environment's expert, as token sequences to imitate."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Sequence

import numpy as np

from config import Config
from envs.play import expert_episode
from envs.registry import make_environment
from envs.user_errors import describe_error, home_of
from learner.samples import Sample
from protocol.checks import MAX_TURNS
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
    home = home_of(environment)
    size = environment.size("train")
    failed = 0
    reasons: dict[str, int] = {}  # why tasks failed -> the first one that did
    slow_seconds = config.actor.step_timeout  # a turn
    told_slow = False
    for number, index in enumerate(random.Random(seed).sample(range(size), min(episodes, size))):
        rng = random.Random(f"{seed}:{index}")
        began = time.monotonic()
        try:
            wasted = {"slips": settings.slips, "dawdling": settings.dawdling}
            played = expert_episode(environment, "train", index, rng, **wasted, limit=MAX_TURNS)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            failed += 1
            why = describe_error(error, home)
            if why not in reasons:
                log.warning("training task %d cannot be demonstrated: %s", index, why, exc_info=not reasons)
                reasons[why] = index
            if failed == number + 1 >= min(FIRST_TASKS, episodes, size):
                first, task = next(iter(reasons.items()))
                raise NoDemonstrations(f"env.name: none of the first {failed} tasks can be demonstrated; task {task}: {first}") from None
            continue
        seconds = time.monotonic() - began
        if not told_slow and seconds > slow_seconds * max(1, len(played.turns)):
            told_slow = True
            log.warning(
                "training task %d took %.0f s to demonstrate, more than actor.step_timeout for each of its turns; up to %d follow",
                index,
                seconds,
                episodes - number - 1,
            )
        if played.success:
            yield played.turns


class NoDemonstrations(RuntimeError):
    """No task can be demonstrated; the message says what the first one said, and where."""


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
