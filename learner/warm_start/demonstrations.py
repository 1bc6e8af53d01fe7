"""The environment's expert, as token sequences to imitate."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from config import Config
from envs.play import ExpertEpisode, play_expert_episode
from envs.registry import make_environment
from envs.user_errors import describe_error, source_directory, timeout_error
from learner.data.samples import TrainingSample
from protocol.prompting import Prompter
from protocol.validation import MAX_TURNS

log = logging.getLogger(__name__)

FIRST_TASKS = 64
"""How many of the first tasks may fail without one that does not."""

LOOKS_A_TURN = 10
"""How often the progress of a demonstration is looked at within actor.step_timeout."""

Turns = list[tuple[str, str]]
"""(prompt, response) texts of one episode."""


def demonstrations(config: Config, episodes: int) -> Iterator[Turns]:
    """Those episodes that the expert won, of the first `episodes` tasks of a shuffle of the
    training tasks."""
    settings = config.warm_start
    seed = config.run.seed
    environment = make_environment(
        config.env.name, **config.environment_settings() | {"max_turns": settings.max_turns}
    )
    home = source_directory(environment)
    size = environment.size("train")
    failed = 0
    reasons: dict[str, int] = {}  # why tasks failed -> the first one that did
    for number, index in enumerate(random.Random(seed).sample(range(size), min(episodes, size))):
        rng = random.Random(f"{seed}:{index}")
        play = partial(
            play_expert_episode,
            environment,
            "train",
            index,
            rng,
            expert_error_rate=settings.expert_error_rate,
            wasted_turn_rate=settings.wasted_turn_rate,
            max_turns=MAX_TURNS,
        )
        try:
            played = _Demonstration(play).result(config.actor.step_timeout, home)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            failed += 1
            why = describe_error(error, home)
            if why not in reasons:
                log.warning(
                    "training task %d cannot be demonstrated: %s", index, why, exc_info=not reasons
                )
                reasons[why] = index
            if failed == number + 1 >= min(FIRST_TASKS, episodes, size):
                first, task = next(iter(reasons.items()))
                raise NoDemonstrations(
                    f"env.name: none of the first {failed} tasks can be demonstrated; task "
                    f"{task}: {first}"
                ) from None
            continue
        if played.success:
            yield played.turns


class _Demonstration(threading.Thread):
    """An episode that the expert plays in a thread of its own, which is left to itself when a turn
    takes too long."""

    def __init__(self, play: Callable[..., ExpertEpisode]) -> None:
        """`play` takes `on_turn`, which it calls when a turn begins."""
        super().__init__(daemon=True, name="demonstration")
        self._play = play
        self._turns = 0
        self._played: ExpertEpisode | None = None
        self._failure: BaseException | None = None

    def run(self) -> None:
        try:
            self._played = self._play(on_turn=self._count_turn)
        except BaseException as error:
            self._failure = error

    def _count_turn(self) -> None:
        self._turns += 1

    def result(self, turn_seconds: float, home: str) -> ExpertEpisode:
        """Play it.

        Raises what the environment raises, and UserCodeError when it takes more than
        `turn_seconds` for a turn, or to start.

        Looks are counted, and not seconds, so that time in which this process was stopped is none
        that a turn took.
        """
        self.start()
        turns = 0
        looks = 0
        while self.is_alive():
            self.join(turn_seconds / LOOKS_A_TURN)
            looks = looks + 1 if self._turns == turns else 0
            turns = self._turns
            if looks > LOOKS_A_TURN and self.is_alive():
                raise timeout_error(self, turn_seconds, home)
        if self._failure is not None:
            raise self._failure
        return self._played


class NoDemonstrations(RuntimeError):
    """No task can be demonstrated; the message says what the first one said, and where."""


class TurnTokenizer:
    """A turn's texts to a sample of supervised learning, in the policy's chat format."""

    def __init__(self, prompter: Prompter, turn_end: str) -> None:
        self._prompter = prompter
        self._turn_end = turn_end

    def samples(self, turns: Sequence[tuple[str, str]]) -> list[TrainingSample]:
        """One a turn. Every token of the response is learned, the end of the turn included."""
        prompts = self._prompter.encode_prompts([prompt for prompt, _ in turns])
        responses = self._prompter.encode([response + self._turn_end for _, response in turns])
        return [
            _imitated(np.array(prompt, dtype=np.int32), np.array(response, dtype=np.int32))
            for prompt, response in zip(prompts, responses, strict=True)
        ]


def _imitated(prompt: np.ndarray, response: np.ndarray) -> TrainingSample:
    length = len(response)
    return TrainingSample(
        prompt=prompt,
        response=response,
        mask=np.ones(length, bool),
        log_mu=np.zeros(length, np.float32),
        age=np.zeros(length, np.int32),
        advantage=1.0,
    )
