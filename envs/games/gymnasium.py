"""Gymnasium's text games, and others registered there, as an `Environment`.

`--env gymnasium --env.settings.id FrozenLake-v1`

A game speaks text if its observations are text, or if it draws itself as text
(`render_mode="ansi"`); of others, the observation is written out. An action is a text, or one of a
few: those of Gymnasium's own text games have names here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from envs.base import Observation, StepResult
from envs.games.ansi import Marks, ansi_to_text
from envs.games.game import HISTORY, GameEnvironment
from envs.settings import parse_argument

try:
    import gymnasium
    from gymnasium import spaces
except ImportError as error:
    raise ValueError(
        f"env.name: gymnasium needs a package that is not installed ({error}): pip install -e "
        "'.[games]'"
    ) from None

ID = "FrozenLake-v1"


class _Game(NamedTuple):
    """Facts about a game that Gymnasium does not tell."""

    actions: tuple[str, ...] = ()
    """Their names, by number."""
    task: str = ""
    """The instruction, as the agent reads it."""
    marks: Marks = MappingProxyType({})
    """How the colors that it draws in are written."""
    ends_won: bool = False
    """It ends only when it is won, or for want of time: any reward at its end is a success."""


_KNOWN = {
    "FrozenLakeEnv": _Game(
        ("left", "down", "right", "up"),
        "Walk over a frozen lake from S to G; H is a hole, F is ice. Where you are stands in "
        "brackets.",
        marks={"41": ("[", "]")},
    ),
    "CliffWalkingEnv": _Game(
        ("up", "right", "down", "left"),
        "Walk from the lower left corner to T without stepping on the cliff, C. You are at x.",
        ends_won=True,
    ),
    "TaxiEnv": _Game(
        ("down", "up", "right", "left", "pick up", "drop off"),
        "Drive a taxi to the passenger, pick up, drive to the destination, drop off there. The "
        "stands are R, G, Y and B; walls are | and -, and : lets you through. In parentheses is "
        "the stand where the passenger waits, in <> the destination. The taxi is in brackets, in "
        "braces with the passenger in it.",
        marks={
            "1": ("", ""),
            "34": ("(", ")"),
            "35": ("<", ">"),
            "42": ("{", "}"),
            "43": ("[", "]"),
        },
    ),
    "BlackjackEnv": _Game(
        ("stick", "hit"),
        "Come closer to 21 than the dealer, not beyond. Shown are your sum, the dealer's card, "
        "and whether you have a usable ace.",
    ),
}
"""Known games by the name of the class, which all sizes and versions of a game share."""


class GymnasiumEpisode:
    """One game being played.

    See `envs.base.Episode`. It is a success if it ends, not for want of time, with a positive
    reward; with `game.ends_won`, with any.
    """

    def __init__(self, env: gymnasium.Env, seed: int, game: _Game, max_turns: int) -> None:
        self._env = env
        self._actions = game.actions
        self._ends_won = game.ends_won
        self._marks = game.marks
        self._turns_left = max_turns
        self._done = False
        self.task = game.task
        if env.spec is None:
            raise ValueError(f"{env} was not made by gymnasium.make")
        self.task_type = env.spec.id
        observation, _ = env.reset(seed=seed)
        self.observation = self._observe(observation)
        self.scores = {"return": 0.0}

    def step(self, action: str) -> StepResult:
        """Execute an action; one that there is not uses a turn, and changes nothing."""
        if self._done:
            raise RuntimeError("the episode is over: start another one")
        reward = 0.0
        won = False
        terminated = False
        truncated = False
        if not self._actions or action in self._actions:
            observation, reward, terminated, truncated, _ = self._env.step(self._convert(action))
            reward = float(reward)
            self.observation = self._observe(observation)
            won = bool(terminated and (reward > 0 or self._ends_won))
        self._turns_left -= 1
        self._done = bool(terminated or truncated or self._turns_left == 0)
        self.scores = {"return": self.scores["return"] + reward}
        return StepResult(
            self.observation, reward, self._done, won, truncated=self._done and not terminated
        )

    def state_key(self) -> str:
        """The text that is shown now."""
        return self.observation.text

    def close(self) -> None:
        """Let go of what the game holds open."""
        self._env.close()

    def _convert(self, action: str) -> str | int:
        """The action as the game takes it: a number where actions have names."""
        if not self._actions:
            return action
        space = self._env.action_space
        assert isinstance(space, spaces.Discrete)  # `name_actions` names those of no other one
        return int(space.start) + self._actions.index(action)

    def _observe(self, observation: Any) -> Observation:
        if not isinstance(observation, str) and self._env.render_mode == "ansi":
            # Where the player is, for one, is shown by a color.
            observation = ansi_to_text(cast(str, self._env.render()), self._marks)
        return Observation(str(observation).strip(), self._actions)


class Gymnasium(GameEnvironment):
    """A registered game of Gymnasium as an `Environment`.

    Settings: `id`, its name there; `arguments`, name=value for its constructor (values as in JSON);
    `actions`, names of its actions in order; `task`, what the agent is told; `max_turns`;
    `history`.
    """

    name = "gymnasium"

    def __init__(
        self,
        id: str = ID,
        arguments: Sequence[str] = (),
        actions: Sequence[str] = (),
        task: str = "",
        max_turns: int = 0,
        history: int = HISTORY,
    ) -> None:
        super().__init__(max_turns, history)
        self._id = id
        self._arguments = dict(parse_argument(text) for text in arguments)
        try:
            env = gymnasium.make(id, **self._arguments)
        except Exception as error:  # unknown, or whatever its constructor raises
            raise ValueError(f"env.settings.id: {id} cannot be made: {error}") from None
        if "ansi" in env.metadata.get("render_modes", []):
            self._arguments["render_mode"] = "ansi"
        env.close()
        known = _KNOWN.get(type(env.unwrapped).__name__, _Game())
        named = name_actions(id, env.action_space, tuple(actions) or known.actions)
        self._game = known._replace(actions=named, task=task or known.task or f"Play {id}.")
        if len({self._first_observation() for _ in range(3)}) > 1:
            raise ValueError(
                f"env.settings.arguments: {id} begins differently each time with the same seed, so "
                "that a group would play different games: give what it draws when it is made"
            )

    def start_with(self, seed: int) -> GymnasiumEpisode:
        """See `GameEnvironment`."""
        env = gymnasium.make(self._id, **self._arguments)
        try:
            return GymnasiumEpisode(env, seed, self._game, self.max_turns)
        except BaseException:
            env.close()
            raise

    def _first_observation(self) -> Observation:
        with contextlib.closing(self.start_with(0)) as episode:
            return episode.observation


def name_actions(id: str, space: spaces.Space, names: tuple[str, ...]) -> tuple[str, ...]:
    """A name for each action, in lower case as actions are parsed.

    Without `names` it is the action's number; there are none if any text is an action. ValueError
    for too few or too many names.
    """
    if isinstance(space, spaces.Text):
        return ()
    if not isinstance(space, spaces.Discrete):
        raise ValueError(
            f"env.settings.id: an action of {id} is neither a text nor one of a few, but {space}"
        )
    names = tuple(name.lower() for name in names) or tuple(str(number) for number in range(space.n))
    if len(names) != space.n:
        raise ValueError(
            f"env.settings.actions: {id} has {space.n} actions, and {len(names)} are named"
        )
    return names
