"""The common part of the adapters: prompt, format, and a task for each seed.

The games have no expert, and no split of their own.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from typing import NoReturn

from envs.base import Episode, ParsedAction, Split
from envs.response import format_think_action, parse_think_action
from envs.view import AgentView

SIZES: dict[Split, int] = {"train": 100_000, "held_out": 1_000}
_FIRST_SEED: dict[Split, int] = {"train": 0, "held_out": SIZES["train"]}

MAX_TURNS = 30
HISTORY = 4

_FORMAT = "Answer with <think>your reasoning</think><action>{what}</action>"

# An agent can say anything; keep it from breaking the layout.
_LONGEST_ACTION = 120


def seed_of(split: Split, index: int) -> int:
    """The seed that is task `index` of a split; IndexError where there is none."""
    if not 0 <= index < SIZES[split]:
        raise IndexError(f"{split} has tasks 0 to {SIZES[split] - 1}, not {index}")
    return _FIRST_SEED[split] + index


class GameEnvironment(ABC):
    """A game of another library as an `Environment`.

    Settings: `max_turns` (0: 30); `history`, past turns in the prompt. An adapter adds its own, and
    `start_with`.
    """

    name: str

    def __init__(self, max_turns: int = 0, history: int = HISTORY) -> None:
        self.max_turns = max_turns or MAX_TURNS
        self._history = history

    @abstractmethod
    def start_with(self, seed: int) -> Episode:
        """The game that this seed makes."""

    def size(self, split: Split) -> int:
        """Number of seeds."""
        return SIZES[split]

    def start(self, split: Split, index: int, seed: int = 0) -> Episode:
        """Open the game of seed `index` of a split.

        All that it draws is that seed's, and `seed` makes no difference.
        """
        del seed
        return self.start_with(seed_of(split, index))

    def view(self, episode: Episode) -> AgentView:
        """A fresh view, without a memory."""
        return AgentView(episode.task, episode.observation, history=self._history)

    def prompt(self, view: AgentView) -> str:
        """The rules, the past turns, what is shown now, the actions if known, and the format."""
        lines = [view.task]
        for turn, text, action in view.past:
            if text:
                lines.append(text)
            lines.append(f"Step {turn}: {' '.join(action.split())[:_LONGEST_ACTION]}")
        if view.observation.text:
            lines.append(view.observation.text)
        what = "your action"
        if view.observation.admissible:
            lines.append("Actions: " + "; ".join(view.observation.admissible))
            what = "one of the actions"
        lines.append(f"Step {view.step}: {_FORMAT.format(what=what)}")
        return "\n".join(lines)

    def parse(self, response: str, admissible: tuple[str, ...]) -> ParsedAction:
        """See `envs.response`.

        Letters keep their case where any text is an action, since it means something in some games.
        """
        parsed = parse_think_action(response, admissible or None, keep_case=not admissible)
        return ParsedAction(parsed.action, parsed.valid and parsed.action != "")

    def format_response(self, thought: str, action: str) -> str:
        """See `envs.response`."""
        return format_think_action(thought, action)

    def expert(self, episode: Episode, rng: random.Random) -> NoReturn:
        """There is none: ValueError."""
        raise ValueError(f"env.name: {self.name} has no expert")
