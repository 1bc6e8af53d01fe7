"""WebShop as an `Environment`: a generated shop or one read from WebShop's files."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from envs.base import Episode, Observation, ParsedAction, Split, StepResult
from envs.response import format_think_action, parse_think_action
from envs.view import AgentView
from envs.webshop.expert import WebShopExpert
from envs.webshop.files import read_files
from envs.webshop.generate import generate
from envs.webshop.goals import (
    GOAL_KINDS,
    Goal,
    GoalKind,
    build_human_goals,
    build_synthetic_goals,
    split_goals,
)
from envs.webshop.memory import ShopView
from envs.webshop.nouns import find_title_nouns
from envs.webshop.page import SEARCH_FORM, click_action
from envs.webshop.products import build_products
from envs.webshop.prompt import build_prompt
from envs.webshop.reward import score_purchase
from envs.webshop.site import Shop, Visit

REWARD = 10.0
MAX_TURNS = 15

_FORM = re.compile(r"(?:search|click)\[.+\]")


@dataclass(frozen=True)
class World:
    """A shop and the goals of its shoppers. Read-only."""

    shop: Shop
    goals: dict[GoalKind, dict[Split, list[Goal]]]


@lru_cache(maxsize=2)
def load_world(data: str) -> World:
    """The shop of a directory of WebShop's files, or the generated one ("").

    It is made once a process, before a fork if it is asked for then.
    """
    if data:
        files = read_files(Path(data))
        held_out = None
    else:
        files, held_out = generate()
    products = build_products(files, find_title_nouns(files))
    goals: dict[GoalKind, list[Goal]] = {
        "human": build_human_goals(products, files),
        "synthetic": build_synthetic_goals(products, files),
    }
    return World(Shop(products), {kind: split_goals(goals[kind], held_out) for kind in GOAL_KINDS})


class WebShopEpisode:
    """One visit to the shop. See `envs.base.Episode`.

    `scores` has WebShop's raw reward, from 0 to 1, as `score`, and its components; `score` is 0 as
    long as nothing is bought. `visit` is the state of the shop.
    """

    def __init__(self, shop: Shop, goal: Goal, max_turns: int) -> None:
        self.visit = Visit.begin(shop, goal.instruction)
        self._goal = goal
        self._turns_left = max_turns
        self._done = False
        self.task = goal.instruction
        self.task_type: str = goal.kind
        self.scores: dict[str, float] = {"score": 0.0}
        self.observation = self._observe()

    def step(self, action: str) -> StepResult:
        """Execute an action; after one that is not possible nothing changes, but the turn is used.

        Only Buy Now can be rewarded.
        """
        if self._done:
            raise RuntimeError("the episode is over: start another one")
        visit = self.visit
        visit.act(action)
        self.observation = self._observe()
        self._turns_left -= 1
        if visit.kind == "bought" and visit.product is not None:
            score = score_purchase(visit.product, visit.chosen.values(), self._goal)
            self.scores = {"score": score.total, **score.components()}
        won = self.scores["score"] == 1
        bought = visit.kind == "bought"
        self._done = bought or self._turns_left == 0
        return StepResult(
            self.observation,
            REWARD * won,
            self._done,
            won,
            truncated=self._done and not bought,
        )

    def state_key(self) -> str:
        """The page, on which the instruction stands, and the chosen options.

        The prompt shows both.
        """
        return "\n".join((self.observation.text, *self.visit.chosen.values()))

    def _observe(self) -> Observation:
        clickable = self.visit.clickable()
        if self.visit.kind == "index":
            return Observation(self.visit.text(), (SEARCH_FORM,))
        return Observation(self.visit.text(), tuple(click_action(name) for name in clickable))


class WebShop:
    """WebShop as an `Environment`.

    Settings: `data`, a directory with WebShop's files ("": that of the environment variable
    WEBSHOP_DATA, and without it the generated catalogue); `task_types`, human or synthetic goals
    (none named: both); `max_turns` (0: 15); `history`, past turns in the prompt.

    A goal of the split `train` never occurs in `held_out`; of the generated catalogue, neither does
    a product that is meant.
    """

    name = "webshop"

    def __init__(
        self, data: str = "", task_types: Sequence[str] = (), max_turns: int = 0, history: int = 2
    ) -> None:
        unknown = set(task_types) - set(GOAL_KINDS)
        if unknown:
            raise ValueError(
                f"env.settings.task_types: unknown {', '.join(sorted(unknown))}; known: "
                f"{', '.join(GOAL_KINDS)}"
            )
        self.max_turns = max_turns or MAX_TURNS
        self._history = history
        self.data = data or os.environ.get("WEBSHOP_DATA", "")
        world = load_world(self.data)
        self._shop = world.shop
        kinds: list[GoalKind] = [
            kind for kind in GOAL_KINDS if kind in task_types or not task_types
        ]
        self._goals = {
            split: _interleave([world.goals[kind][split] for kind in kinds])
            for split in ("train", "held_out")
        }
        for split, goals in self._goals.items():
            if not goals:
                raise ValueError(
                    f"env.settings.data: {self.data} has no goals of the kinds "
                    f"{', '.join(kinds)} for "
                    f"the split {split}"
                )

    def size(self, split: Split) -> int:
        """Number of goals."""
        return len(self._goals[split])

    def goal(self, split: Split, index: int) -> Goal:
        """The goal that `start` plays."""
        if not 0 <= index < self.size(split):
            raise IndexError(f"{split} has tasks 0 to {self.size(split) - 1}, not {index}")
        return self._goals[split][index]

    def start(self, split: Split, index: int, seed: int = 0) -> WebShopEpisode:
        """Open goal `index` of `split`, for which nothing is drawn: `seed` makes no difference."""
        del seed
        return WebShopEpisode(self._shop, self.goal(split, index), self.max_turns)

    def view(self, episode: Episode) -> ShopView:
        """A fresh view, which remembers what was searched and chosen."""
        return ShopView(episode.task, episode.observation, history=self._history)

    def prompt(self, view: AgentView) -> str:
        """See `envs.webshop.prompt`. TypeError for a view that is not from `view`."""
        if not isinstance(view, ShopView):
            raise TypeError(
                "the prompt needs what the visit recalls; make the view with "
                "environment.view(episode)"
            )
        return build_prompt(view)

    def parse(self, response: str, admissible: tuple[str, ...]) -> ParsedAction:
        """See `envs.response`.

        Valid if the action is search[…] or click[…], be it admissible or not.
        """
        del admissible
        parsed = parse_think_action(response)
        return ParsedAction(
            parsed.action, parsed.valid and _FORM.fullmatch(parsed.action) is not None
        )

    def format_response(self, thought: str, action: str) -> str:
        """See `envs.response`."""
        return format_think_action(thought, action)

    def expert(self, episode: Episode, rng: random.Random) -> WebShopExpert:
        """See `envs.webshop.expert`."""
        return WebShopExpert(episode.task, rng)


def _interleave(lists: list[list[Goal]]) -> list[Goal]:
    """The goals of all lists, each list in its order, spread evenly.

    Any stretch has goals of each list in proportion.
    """
    positions = [
        ((i + 0.5) / len(goals), which, goal)
        for which, goals in enumerate(lists)
        for i, goal in enumerate(goals)
    ]
    return [goal for *_, goal in sorted(positions, key=lambda position: position[:2])]
