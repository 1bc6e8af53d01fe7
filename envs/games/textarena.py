"""Games for one player of TextArena (Guertler et al. 2025) as an `Environment`: `--env textarena --textarena.game GuessTheNumber-v0`."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator

from envs.base import Observation, StepResult
from envs.games.game import HISTORY, GameEnvironment

try:
    import textarena
    from textarena.envs.registration import ENV_REGISTRY
except ImportError as error:
    raise ValueError(f"env.name: textarena needs a package that is not installed ({error}): pip install -e '.[games]'") from None

GAME = "GuessTheNumber-v0"

_DRAWING = threading.Lock()
_RULES = textarena.ObservationType.PROMPT
_ECHO = textarena.ObservationType.PLAYER_ACTION


class TextArenaEpisode:
    """One game being played. See `envs.base.Episode`.

    The reward is the game's own, at its end: 1 when it is won; less, down to -1, when it is not, often for what was reached.
    An episode that runs out of turns first gets 0.
    """

    def __init__(self, game: str, seed: int, max_turns: int) -> None:
        self._turns_left = max_turns
        self._done = False
        self._ended = False
        self._random = random.Random(seed).getstate()
        with self._own_randomness():
            # Without the wrappers of the library's agents: a message is shown once, and history is left to the prompt.
            self._env = textarena.make(f"{game}-raw")
            self._env.reset(num_players=1, seed=seed)
            messages = self._env.get_observation()[1]
        self.task = "\n".join(text.strip() for _, text, kind in messages if kind is _RULES)
        self.task_type = game
        self.observation = Observation(_shown(messages), ())
        self.scores = {"reward": 0.0}

    def step(self, action: str) -> StepResult:
        """Make a move, in the brackets that TextArena wants around one. Whether an invalid one costs the game is up to the game."""
        if self._done:
            raise RuntimeError("the episode is over: start another one")
        with self._own_randomness():
            over, _ = self._env.step(action if "[" in action else f"[{action}]")
            messages = self._env.get_observation()[1]
        self._turns_left -= 1
        self._done = over or self._turns_left == 0
        self.observation = Observation(_shown(messages), ())
        if over:
            rewards, info = self._end()
            self.scores = {"reward": float(rewards[0])}
            self.observation = Observation(_shown(messages) or str(info[0].get("reason") or ""), ())
        return StepResult(self.observation, self.scores["reward"], self._done, self.scores["reward"] >= 1)

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
        """TextArena draws from Python's global generator: it gets one of this episode's while it runs, so that what other episodes and
        the rest of the process draw makes no difference, and the other way round."""
        with _DRAWING:
            outside = random.getstate()
            random.setstate(self._random)
            try:
                yield
            finally:
                self._random = random.getstate()
                random.setstate(outside)


class TextArena(GameEnvironment):
    """Settings: `game`, a name in TextArena's registry; `max_turns`; `history`."""

    name = "textarena"

    def __init__(self, game: str = GAME, max_turns: int = 0, history: int = HISTORY) -> None:
        super().__init__(max_turns, history)
        self._game = game
        if f"{game}-raw" not in ENV_REGISTRY:
            raise ValueError(f"textarena.game: TextArena has no game {game!r}; see textarena.pprint_registry_detailed()")
        try:
            self.start("train", 0).close()
        except Exception as error:  # whatever a game needs: another player, word lists, further packages
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ValueError(f"textarena.game: {game} cannot be played here: {reason}") from None

    def start_with(self, seed: int) -> TextArenaEpisode:
        """See `GameEnvironment`."""
        return TextArenaEpisode(self._game, seed, self.max_turns)


def _shown(messages: list[tuple[int, str, textarena.ObservationType]]) -> str:
    """What the game says, without the rules, which are the task, and the player's own move."""
    return "\n".join(text.strip() for _, text, kind in messages if kind not in (_RULES, _ECHO))
