"""The protocol of a harness: an agent that asks for its turns by itself.

A `Harness` is a set of numbered tasks, and a coroutine that plays one of them. It gets an
`openai.AsyncOpenAI` whose address is that of its actor's own endpoint: each request is a turn of
the policy. It returns the episode's reward.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from envs.base import Split

HARNESS_NAMES = ("size", "task", "episode")
"""What tells the class of a harness from that of other environments."""

DEFAULT_MAX_TURNS = 30
"""Turns of an episode of a harness that sets no limit."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a harness's episode, where a reward alone does not say all."""

    reward: float
    success: bool | None = None
    """The task is solved; None: it is if the reward is above 0."""
    truncated: bool = False
    """Something cut the episode off that could have gone on."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Figures that the benchmark reports beside success, by name."""


class Harness(Protocol):
    """A set of numbered tasks, each played by a coroutine; stateless but for its settings.

    It may have `max_turns`, the turns that an episode may take (30 without it).
    """

    name: str

    def size(self, split: Split) -> int:
        """Number of tasks in a split."""
        ...

    def task(self, split: Split, index: int) -> Any:
        """Task `index`, the same one in every process; whatever `episode` wants to get."""
        ...

    async def episode(self, task: Any, client: Any) -> float | Outcome | None:
        """Play a task, and return its reward.

        It runs in a thread and an event loop of its own, and is canceled where the episode is
        broken off. `client` is an `openai.AsyncOpenAI`; other clients find the address in its
        `base_url`, and the key in its `api_key`. None is returned where the reward was posted.
        """
        ...


def is_harness(environment: object) -> bool:
    """Tell whether an environment, or the class of one, is a harness."""
    has_parts = all(callable(getattr(environment, name, None)) for name in HARNESS_NAMES)
    return has_parts and not hasattr(environment, "start")


def find_harness_flaw(harness: Any) -> str:
    """Say what is wrong with the parts of a harness; "" if nothing is."""
    if not isinstance(getattr(harness, "name", None), str):
        return "name: a text belongs there"
    if not inspect.iscoroutinefunction(harness.episode):
        return "episode: `async def episode(self, task, client)` belongs there"
    max_turns = getattr(harness, "max_turns", None)
    if not isinstance(max_turns, int) or max_turns < 1:
        return f"max_turns: a whole number of at least 1 belongs there, not {max_turns!r:.100}"
    return ""
