"""TextArena's games for one player (Guertler et al., 2025) as an `Environment`.

`--env textarena --env.settings.game GuessTheNumber-v0`
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from envs.base import Observation, StepResult
from envs.games.ansi import ansi_to_text
from envs.games.game import HISTORY, GameEnvironment

try:
    import textarena
    from textarena.envs.registration import ENV_REGISTRY
except ImportError as error:
    raise ValueError(
        f"env.name: textarena needs a package that is not installed ({error}): pip install -e "
        "'.[games]'"
    ) from None

GAME = "GuessTheNumber-v0"

_EPISODE_RANDOM: ContextVar[random.Random | None] = ContextVar("_EPISODE_RANDOM", default=None)
"""The generator of the episode that this thread plays now."""

# Errors of reading a move; LookupError itself is NLTK's, for data that are missing.
_UNREADABLE = (ValueError, TypeError, AttributeError, IndexError, KeyError)

_RULES = textarena.ObservationType.PROMPT
_ECHO = textarena.ObservationType.PLAYER_ACTION


class TextArenaEpisode:
    """One game being played. See `envs.base.Episode`.

    The reward is the game's own, at its end: 1 when it is won; less, down to -1, when it is not,
    often for what was reached. An episode that runs out of turns first gets 0.
    """

    def __init__(self, game: str, seed: int, max_turns: int) -> None:
        self._turns_left = max_turns
        self._done = False
        self._ended = False
        self._random = random.Random(seed)
        with self._use_random():
            self._env: Any = _make_game(game)  # `textarena.Env` does not declare its `state`
            self._env.reset(num_players=1, seed=seed)
            _sort_arguments(self._env)
            messages = self._env.get_observation()[1]
        self.task = "\n".join(str(text).strip() for _, text, kind in messages if kind is _RULES)
        self.task_type = game
        self.observation = Observation(_text_of(messages), ())
        self.scores = {"reward": 0.0}

    def step(self, action: str) -> StepResult:
        """Make a move, in the brackets that TextArena wants around one.

        The game decides whether an invalid move costs the game; one that it cannot read is invalid,
        too.
        """
        if self._done:
            raise RuntimeError("the episode is over: start another one")
        if "[" not in action:
            action = f"[{action}]"
        with self._use_random():
            over = self._move(action)
            messages = self._env.get_observation()[1]
        self._turns_left -= 1
        self._done = over or self._turns_left == 0
        text = _text_of(messages)
        if over:
            rewards, info = self._end()
            self.scores = {"reward": float(rewards[0])}
            text = text or str(info[0].get("reason") or "")
        self.observation = Observation(text, ())
        reward = self.scores["reward"]
        return StepResult(
            self.observation, reward, self._done, reward >= 1, truncated=self._done and not over
        )

    def _move(self, action: str) -> bool:
        """Make a move; true if the game is over with it."""
        try:
            over, _ = self._env.step(action)
        except _UNREADABLE as error:
            self._env.state.set_invalid_move(f"The game cannot read it ({type(error).__name__}).")
            over, _ = self._env.state.step()
        return bool(over)

    def state_key(self) -> str:
        """The text that is shown now."""
        return self.observation.text

    def close(self) -> None:
        """Let go of what a game holds open that was left before its end."""
        if not self._ended:
            self._end()

    def _end(self) -> tuple[dict[int, float], dict[int, dict]]:
        """Close the game: rewards and last words, by player."""
        self._ended = True
        return self._env.close()

    @contextlib.contextmanager
    def _use_random(self) -> Iterator[None]:
        """Have the game draw from this episode's own generator.

        Draws of other episodes and of the rest of the process then make no difference.
        """
        token = _EPISODE_RANDOM.set(self._random)
        try:
            yield
        finally:
            _EPISODE_RANDOM.reset(token)


class _RandomModule:
    """Python's `random` for the modules of games, which draw from its global generator.

    Theirs is that of the episode in `_EPISODE_RANDOM`. There is no lock, which a move that never
    returns would keep from all other episodes.
    """

    def __getattr__(self, name: str) -> Any:
        generator = _EPISODE_RANDOM.get()
        if generator is None or not hasattr(generator, name):
            return getattr(random, name)
        return getattr(generator, name)


_RANDOM_MODULE = _RandomModule()


def _make_game(game: str) -> textarena.Env:
    """A game without the wrappers of the library's agents.

    A message is shown once, and history is left to the prompt.
    """
    env = textarena.make(f"{game}-raw")
    if _replace_random(type(env).__module__):
        # The first one may have drawn from the global generator.
        env = textarena.make(f"{game}-raw")
    return env


def _replace_random(game_module: str) -> bool:
    """Give the library's modules, and the one named, the random numbers of episodes.

    True if any of them drew from the global generator until now.
    """
    replaced = False
    for name, module in list(sys.modules.items()):
        is_game = name == game_module or name.partition(".")[0] == "textarena"
        if is_game and vars(module).get("random") is random:
            vars(module)["random"] = _RANDOM_MODULE
            replaced = True
    return replaced


def _sort_arguments(env: Any) -> None:
    """Let the game call `set_invalid_move` with reason and reward in either order.

    Some games have it the wrong way round.
    """
    if not isinstance(env.state, textarena.SinglePlayerState):
        return
    original = env.state.set_invalid_move

    def set_invalid_move(*args: Any, **kwargs: Any) -> None:
        values = [*args, *kwargs.values()]
        reason = next((value for value in values if isinstance(value, str)), "")
        reward = next((float(value) for value in values if isinstance(value, int | float)), -1.0)
        original(reason=reason, reward=reward)

    env.state.set_invalid_move = set_invalid_move


class TextArena(GameEnvironment):
    """A game of TextArena as an `Environment`.

    Settings: `game`, a name in TextArena's registry; `max_turns`; `history`.
    """

    name = "textarena"

    def __init__(self, game: str = GAME, max_turns: int = 0, history: int = HISTORY) -> None:
        super().__init__(max_turns, history)
        self._game = game
        if f"{game}-raw" not in ENV_REGISTRY:
            raise ValueError(
                f"env.settings.game: TextArena has no game {game!r}; see "
                "textarena.pprint_registry_detailed()"
            )
        try:
            self.start_with(0).close()
        except Exception as error:
            # Whatever a game needs: another player, word lists, further packages.
            reason = _first_line(str(error)) or type(error).__name__
            raise ValueError(f"env.settings.game: {game} cannot be played here: {reason}") from None

    def start_with(self, seed: int) -> TextArenaEpisode:
        """See `GameEnvironment`."""
        return TextArenaEpisode(self._game, seed, self.max_turns)


def _first_line(message: str) -> str:
    """The first line of an error that says something.

    NLTK's begin with colors and a line of asterisks.
    """
    text = ansi_to_text(message, {"31": ("", ""), "93": ("", "")})
    lines = (line.strip() for line in text.splitlines())
    return next((line for line in lines if any(char.isalnum() for char in line)), "")


def _text_of(messages: list[tuple[int, str, textarena.ObservationType]]) -> str:
    """The game's messages, without the rules, which are the task, and the player's own move."""
    return "\n".join(str(text).strip() for _, text, kind in messages if kind not in (_RULES, _ECHO))
