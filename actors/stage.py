"""Calls of an episode to its environment, and checks of what the environment gives.

Nothing else leaves the episode's thread.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from math import isfinite
from typing import Any, NamedTuple, Protocol, SupportsFloat

from envs.base import Environment, Episode, Split
from envs.play import close_episode, start_episode
from envs.user_errors import UserCodeError, describe_value, require_text
from envs.view import AgentView
from protocol.arrays import INT32, unpack
from protocol.messages import Response
from protocol.validation import MAX_REWARD

MAX_NAME = 200
"""Characters of a task type or a score's name: they become names of metrics."""
MAX_SCORES = 100
LONGEST_TOKEN = 256
"""Characters of a token, at most: twice those of the longest one in use, a run of spaces."""


class EpisodeOpening(NamedTuple):
    """The beginning of an episode; `prompt` is None if it does not fit the context."""

    task: str
    task_type: str
    prompt: list[int] | None


class StepOutcome(NamedTuple):
    """The outcome of a response's step.

    `prompt` is the next one: None after the last turn, and if it does not fit the context.
    """

    anchor: str
    action: str
    valid: bool
    reward: float
    done: bool
    success: bool
    truncated: bool
    scores: dict[str, float]
    prompt: list[int] | None
    rewritten: bool = False
    """The prompt begins anew, since the chat template rewrote what was said."""
    kept: Response | None = None
    """The part of the response that was read; None: all of it."""


class PromptCodec(Protocol):
    """Makes tokens of prompts, and text of responses (protocol/prompting.py has the run's)."""

    def encode_prompt(self, message: str) -> list[int]:
        """The tokens of a prompt."""
        ...

    def read_response(self, tokens: list[int]) -> str:
        """The text of a response's tokens, with the thought that its prompt has begun."""
        ...


class Stage:
    """One episode of an environment.

    Its methods run in the episode's thread, and raise whatever the environment raises, or
    UserCodeError for what it gives that is of no use.
    """

    def __init__(
        self, environment: Environment, prompter: PromptCodec, max_prompt_tokens: int
    ) -> None:
        self._environment = environment
        self._prompter = prompter
        self._max_prompt_tokens = max_prompt_tokens
        self._max_prompt_characters = max_prompt_tokens * LONGEST_TOKEN
        self._episode: Episode | None = None
        self._view: AgentView | None = None

    @property
    def episode(self) -> Episode:
        """The episode that is played; RuntimeError before its start and after its end."""
        if self._episode is None:
            raise RuntimeError("an episode that has not started, or is closed")
        return self._episode

    @property
    def view(self) -> AgentView:
        """Return the view of what the agent has been shown; RuntimeError before the start."""
        if self._view is None:
            raise RuntimeError("an episode that has not started")
        return self._view

    def start(self, split: Split, index: int, seed: int) -> EpisodeOpening:
        """Start the task, up to the first prompt."""
        self._episode = start_episode(self._environment, split, index, seed)
        task = require_text("task", self._episode.task)
        task_type = require_text("task_type", self._episode.task_type, MAX_NAME)
        self._view = self._environment.view(self._episode)
        return EpisodeOpening(task, task_type, self._encode_prompt(self._view))

    def step(self, tokens: bytes) -> StepOutcome:
        """Carry out the response, up to the next prompt."""
        episode = self.episode
        view = self.view
        response = self._prompter.read_response(unpack(tokens, INT32).tolist())
        anchor = require_text("state_key()", episode.state_key())
        parsed = self._environment.parse(response, view.observation.admissible)
        action = require_text("action", read_attribute("parse()", parsed, "action"))
        valid = require_flag("valid", read_attribute("parse()", parsed, "valid"))
        result = episode.step(action)
        reward = require_reward(read_attribute("step()", result, "reward"))
        done = require_flag("done", read_attribute("step()", result, "done"))
        scores = require_scores(episode.scores)
        success = False
        truncated = False
        prompt = None
        if done:
            success = require_flag("success", read_attribute("step()", result, "success"))
            cut_off = require_flag("truncated", getattr(result, "truncated", False))
            truncated = cut_off and not success  # a task that is solved has ended
        else:
            observation = check_observation(read_attribute("step()", result, "observation"))
            view.record(action, observation)
            prompt = self._encode_prompt(view)
        return StepOutcome(
            anchor=anchor,
            action=action,
            valid=valid,
            reward=reward,
            done=done,
            success=success,
            truncated=truncated,
            scores=scores,
            prompt=prompt,
        )

    def close(self) -> None:
        """Have the episode close what it holds open, if it has started."""
        episode = self._episode
        self._episode = None
        if episode is not None:
            close_episode(episode)

    def _encode_prompt(self, view: AgentView) -> list[int] | None:
        """Encode the prompt of the current turn; None if it has too many tokens.

        One that is far too long is not made into tokens.
        """
        text = require_text("prompt()", self._environment.prompt(view), None)
        if len(text) > self._max_prompt_characters:
            return None
        tokens = self._prompter.encode_prompt(text)
        if len(tokens) > self._max_prompt_tokens:
            return None
        return tokens


def _as_float(value: object) -> float | None:
    """Convert a number to float; None for what is no number, or none that a float can hold."""
    if not isinstance(value, SupportsFloat):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def require_number(name: str, value: object) -> float:
    """Return a finite number as a float, whatever number it is (NumPy's, say).

    Raises UserCodeError for what is none.
    """
    number = _as_float(value)
    if number is None or not isfinite(number):
        raise UserCodeError(
            f"the environment gave {describe_value(value)} as {name}, where a finite number belongs"
        )
    return number


def require_reward(value: object) -> float:
    """Return a reward that can be trained on; UserCodeError for another one."""
    reward = require_number("reward", value)
    if abs(reward) > MAX_REWARD:
        raise UserCodeError(
            f"the environment gave a reward of {reward:g}, and more than {MAX_REWARD:g} "
            "cannot be trained on"
        )
    return reward


def require_flag(name: str, value: object) -> bool:
    """Return True or False, from those or from a number that is 1 or 0.

    Raises UserCodeError for what is neither, such as None or a text.
    """
    number = _as_float(value)
    if number not in (0.0, 1.0):
        raise UserCodeError(
            f"the environment gave {describe_value(value)} as {name}, where True or False belongs"
        )
    return bool(number)


def require_scores(scores: object) -> dict[str, float]:
    """Return scores by name; UserCodeError for what does not map names to finite numbers."""
    if not isinstance(scores, Mapping):
        raise UserCodeError(
            f"the environment gave {describe_value(scores)} as scores, which map names to numbers"
        )
    items = list(itertools.islice(scores.items(), MAX_SCORES + 1))
    if len(items) > MAX_SCORES:
        raise UserCodeError(f"the environment gave more than {MAX_SCORES} scores")
    checked = {}
    for name, value in items:
        text = require_text("the name of a score", str(name), MAX_NAME)
        checked[text] = require_number(f"score {text}", value)
    return checked


def check_observation(observation: Any) -> Any:
    """Return an observation whose parts are what they should be; UserCodeError for others."""
    require_text("observation.text", read_attribute("observation", observation, "text"), None)
    admissible = read_attribute("observation", observation, "admissible")
    if not isinstance(admissible, tuple | list) or not all(
        isinstance(action, str) for action in admissible
    ):
        raise UserCodeError(
            f"the environment gave {describe_value(admissible)} as observation.admissible, where "
            "a tuple of texts belongs"
        )
    return observation


def read_attribute(name: str, value: object, attribute: str) -> Any:
    """Return one part of what a method gave."""
    try:
        return getattr(value, attribute)
    except AttributeError:
        raise UserCodeError(
            f"the environment gave {describe_value(value)} as {name}, which has no {attribute}"
        ) from None
