"""The record of what an agent has been shown so far in one episode.

It is the only source of the agent's prompts, live or demonstrated.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from envs.base import Observation


class Memory(Protocol):
    """Knowledge of a reader of the transcript, kept up to date turn by turn.

    It is made from texts only, never from the environment.
    """

    def note(self, action: str, text: str) -> None:
        """Read the observation `text` that followed `action` ("" for the first observation)."""
        ...


class AgentView:
    """Everything that a prompt may show of an episode.

    It has the task, the current observation, the last `history` (observation, action) pairs, the
    number of the turn and a memory.

    Made by `Environment.view`; whoever plays the episode calls `record` once after every step.
    """

    def __init__(
        self, task: str, observation: Observation, *, history: int, memory: Memory | None = None
    ) -> None:
        self.task = task
        self.observation = observation
        self.step = 1
        """Number of the current turn, from 1."""
        self._past: deque[tuple[int, str, str]] = deque(maxlen=history)
        self.memory = memory
        if memory is not None:
            memory.note("", observation.text)

    @property
    def past(self) -> Sequence[tuple[int, str, str]]:
        """(turn, observation text, action) of the last `history` turns, oldest first."""
        return tuple(self._past)

    def record(self, action: str, observation: Observation) -> None:
        """The agent did `action` and is now shown `observation`."""
        self._past.append((self.step, self.observation.text, action))
        self.observation = observation
        self.step += 1
        if self.memory is not None:
            self.memory.note(action, observation.text)
