"""Games for one player of TextArena (Guertler et al.

2025) as an `Environment`: `--env textarena --textarena.game GuessTheNumber-v0`.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from envs.base import Observation, StepResult
from envs.games.ansi import readable
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

_OWN: ContextVar[random.Random | None] = ContextVar("_OWN", default=None)
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
        with self._own_randomness():
            self._env = _make(game)
            self._env.reset(num_players=1, seed=seed)
            _sort_arguments(self._env)
            messages = self._env.get_observation()[1]
        self.task = "\n".join(str(text).strip() for _, text, kind in messages if kind is _RULES)
        self.task_type = game
        self.observation = Observation(_shown(messages), ())
        self.scores = {"reward": 0.0}

    def step(self, action: str) -> StepResult:
        """Make a move, in the brackets that TextArena wants around one.

        Whether an invalid one costs the game is up to the game; one that the game cannot read is
        invalid, too.
        """
        if self._done:
            raise RuntimeError("the episode is over: start another one")
        with self._own_randomness():
            over = self._move(action if "[" in action else f"[{action}]")
            messages = self._env.get_observation()[1]
        self._turns_left -= 1
        self._done = over or self._turns_left == 0
        self.observation = Observation(_shown(messages), ())
        if over:
            rewards, info = self._end()
            self.scores = {"reward": float(rewards[0])}
            self.observation = Observation(_shown(messages) or str(info[0].get("reason") or ""), ())
        reward = self.scores["reward"]
        return StepResult(
            self.observation, reward, self._done, reward >= 1, truncated=self._done and not over
        )

    def _move(self, action: str) -> bool:
        """Whether the game is over with this move."""
        try:
            over, _ = self._env.step(action)
        except _UNREADABLE as error:
            self._env.state.set_invalid_move(f"The game cannot read it ({type(error).__name__}).")
            over, _ = self._env.state.step()
        return bool(over)

    def anchor(self) -> str:
        """What is shown now."""
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
    def _own_randomness(self) -> Iterator[None]:
        """What the game draws is this episode's own, so that what other episodes and the rest of
        the process draw makes no difference."""
        token = _OWN.set(self._random)
        try:
            yield
        finally:
            _OWN.reset(token)


class _Randomness:
    """Python's `random` for the modules of games, which draw from its global generator: theirs is
    that of the episode in `_OWN`.

    No lock, which a move that never returns would keep from all other episodes.
    """

    def __getattr__(self, name: str) -> Any:
        own = _OWN.get()
        return getattr(random if own is None or not hasattr(own, name) else own, name)


_RANDOMNESS = _Randomness()


def _make(game: str) -> textarena.Env:
    """A game without the wrappers of the library's agents: a message is shown once, and history is
    left to the prompt."""
    env = textarena.make(f"{game}-raw")
    if _replace_random(type(env).__module__):
        env = textarena.make(
            f"{game}-raw"
        )  # the first one may have drawn from the global generator
    return env


def _replace_random(module: str) -> bool:
    """Whether there were modules, of the library or the one named, that drew from the global
    generator until now."""
    replaced = False
    for name, loaded in list(sys.modules.items()):
        if (name == module or name.partition(".")[0] == "textarena") and vars(loaded).get(
            "random"
        ) is random:
            loaded.random = _RANDOMNESS
            replaced = True
    return replaced


def _sort_arguments(env: textarena.Env) -> None:
    """Let the game call `set_invalid_move` with reason and reward in either order: some games have
    it the wrong way round."""
    if not isinstance(env.state, textarena.SinglePlayerState):
        return
    original = env.state.set_invalid_move

    def set_invalid_move(*given: Any, **named: Any) -> None:
        values = [*given, *named.values()]
        reason = next((value for value in values if isinstance(value, str)), "")
        reward = next((float(value) for value in values if isinstance(value, int | float)), -1.0)
        original(reason=reason, reward=reward)

    env.state.set_invalid_move = set_invalid_move


class TextArena(GameEnvironment):
    """Settings: `game`, a name in TextArena's registry; `max_turns`; `history`."""

    name = "textarena"

    def __init__(self, game: str = GAME, max_turns: int = 0, history: int = HISTORY) -> None:
        super().__init__(max_turns, history)
        self._game = game
        if f"{game}-raw" not in ENV_REGISTRY:
            raise ValueError(
                f"textarena.game: TextArena has no game {game!r}; see "
                "textarena.pprint_registry_detailed()"
            )
        try:
            self.start("train", 0).close()
        except (
            Exception
        ) as error:  # whatever a game needs: another player, word lists, further packages
            reason = _first_words(str(error)) or type(error).__name__
            raise ValueError(f"textarena.game: {game} cannot be played here: {reason}") from None

    def start_with(self, seed: int) -> TextArenaEpisode:
        """See `GameEnvironment`."""
        return TextArenaEpisode(self._game, seed, self.max_turns)


def _first_words(text: str) -> str:
    """The first line of an error that says something: NLTK's begin with colors and a line of
    asterisks."""
    lines = (line.strip() for line in readable(text, {"31": ("", ""), "93": ("", "")}).splitlines())
    return next((line for line in lines if any(char.isalnum() for char in line)), "")


def _shown(messages: list[tuple[int, str, textarena.ObservationType]]) -> str:
    """What the game says, without the rules, which are the task, and the player's own move."""
    return "\n".join(str(text).strip() for _, text, kind in messages if kind not in (_RULES, _ECHO))
