"""What an environment is, for the actor that plays it, the expert that demonstrates it, and whoever
writes a new one.

An `Environment` is a set of numbered tasks, the same in every process. `start` opens one of them as
an `Episode`, which is played once, never reset. Text goes in and out: a `AgentView` (envs/view.py)
keeps what the agent has been shown, `prompt` turns it into the one user message of a turn, `parse`
turns the response back into an action.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from envs.view import AgentView

Split = Literal["train", "held_out"]


class EnvironmentFailure(RuntimeError):
    """The environment itself broke (a server is down, a file is unreadable).

    The episode is dropped and counted; it is never a reward of 0, which would teach the agent that
    it did wrong.
    """


@dataclass(frozen=True, slots=True)
class Observation:
    """What the agent is shown now. `admissible` is empty where any text is an action."""

    text: str
    admissible: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """`done` is true once the task is solved or the turns are used up; `success` only if it is
    solved.

    `truncated`: it is done only because something cut it off (a limit of turns, say), and could
    have gone on. Asked for with `done`.
    """

    observation: Observation
    reward: float
    done: bool
    success: bool
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class ParsedAction:
    """`action` is executed in any case; `valid` says whether the response had the required
    format."""

    action: str
    valid: bool


class Episode(Protocol):
    """One task being played, from `Environment.start` to the first `StepResult.done`.

    Used once, in one thread from `start` to `close`.

    An episode that holds something open (a browser, a sandbox, a connection) has a method
    `close()`, without arguments. It is called once, however the episode ends: done, failed, too
    slow, or cancelled in the middle.
    """

    task: str
    """The instruction, as the agent reads it."""
    task_type: str
    """The family of the task, for metrics; the agent does not see it."""
    observation: Observation
    """The current observation: the first one before any step, then that of the last step."""
    scores: Mapping[str, float]
    """What the benchmark reports beside success, by name (WebShop's score, say); complete once the
    episode is over."""

    def step(self, action: str) -> StepResult:
        """Execute an action.

        RuntimeError after `done`; EnvironmentFailure if the environment breaks.
        """
        ...

    def anchor(self) -> str:
        """Equal for two moments that show the agent the same: the groups of GiGPO's step-level
        advantage."""
        ...


class Expert(Protocol):
    """Demonstrates one episode, from what the agent itself is shown."""

    def act(self, view: AgentView) -> tuple[str, str]:
        """(thought, action) that brings the task forward; called before the step."""
        ...

    def waste_turn(self, view: AgentView) -> tuple[str, str]:
        """(thought, action) that does no harm and no good: a wasted turn, for demonstrations that
        can be improved upon."""
        ...


class Environment(Protocol):
    """Stateless but for its settings, so one object serves all episodes of a process, at the same
    time."""

    name: str
    max_turns: int

    def size(self, split: Split) -> int:
        """Number of tasks in a split."""
        ...

    def start(self, split: Split, index: int, seed: int) -> Episode:
        """Open task `index`, 0 <= index < size(split): the same task in every process, whatever the
        seed. IndexError outside.

        `seed` is for what is drawn while the task is played (dice, other players). Each member of a
        group has its own, and an episode that is played again has the one that it had. `start` may
        do without the argument where nothing is drawn. Python's and NumPy's global generators are
        seeded anew in each actor: what they give is neither shared by actors nor the same in
        another run.
        """
        ...

    def view(self, episode: Episode) -> AgentView:
        """A fresh record of what the agent of `episode` is shown; made right after `start`."""
        ...

    def prompt(self, view: AgentView) -> str:
        """The one user message of the current turn: a pure function of the view."""
        ...

    def parse(self, response: str, admissible: tuple[str, ...]) -> ParsedAction:
        """The action in a response to a prompt that listed `admissible`."""
        ...

    def respond(self, thought: str, action: str) -> str:
        """The response that `parse` reads as a valid `action`: how an expert's turn is written
        down."""
        ...

    def expert(self, episode: Episode, rng: random.Random) -> Expert:
        """A demonstrator for `episode`; `rng` varies its wording and little else.

        ValueError if nobody can demonstrate it.
        """
        ...
