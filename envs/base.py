"""The protocol of an environment: all that the rest of the project knows of one.

An `Environment` is a set of numbered tasks, the same in every process. `start` opens one of them as
an `Episode`, which is played once, never reset. Text goes in and out: an `AgentView` (envs/view.py)
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
    """Text and possible actions that the agent is shown at one moment.

    `admissible` is empty where any text is an action.
    """

    text: str
    admissible: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """Outcome of one step.

    `done` is true once the task is solved or the turns are used up; `success` only if it is solved.
    `truncated`: the episode is done only because something cut it off (a limit of turns, say), and
    could have gone on. It counts only with `done`, and without `success`: a task that is solved in
    the last turn has ended.
    """

    observation: Observation
    reward: float
    done: bool
    success: bool
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class ParsedAction:
    """Action that was read out of a response.

    It is executed in any case; `valid` says whether the response had the required format.
    """

    action: str
    valid: bool


class Episode(Protocol):
    """One task being played, from `Environment.start` to the first `StepResult.done`.

    Used once, in one thread from `start` to `close`.

    An episode that holds something open (a browser, a sandbox, a connection) has a method
    `close()`, without arguments. It is called once, however the episode ends: done, failed, too
    slow, or canceled in the middle.
    """

    task: str
    """The instruction, as the agent reads it."""
    task_type: str
    """The family of the task, for metrics; the agent does not see it."""
    observation: Observation
    """The current observation: the first one before any step, then that of the last step."""
    scores: Mapping[str, float]
    """Figures that the benchmark reports beside success, by name (WebShop's score, say).

    They are complete once the episode is over.
    """

    def step(self, action: str) -> StepResult:
        """Execute an action.

        RuntimeError after `done`; EnvironmentFailure if the environment breaks.
        """
        ...

    def state_key(self) -> str:
        """A text that is equal for two moments that show the agent the same.

        GiGPO's step-level advantage groups turns by it (the paper's anchor states).
        """
        ...


class Expert(Protocol):
    """Demonstrates one episode, from what the agent itself is shown."""

    def act(self, view: AgentView) -> tuple[str, str]:
        """(thought, action) that brings the task forward; called before the step."""
        ...

    def waste_turn(self, view: AgentView) -> tuple[str, str]:
        """(thought, action) that does no harm and no good.

        Demonstrations with such wasted turns can be improved upon.
        """
        ...


class Environment(Protocol):
    """A set of numbered tasks.

    It is stateless but for its settings, so one object serves all episodes of a process, at the
    same time.
    """

    name: str
    max_turns: int

    def size(self, split: Split) -> int:
        """Number of tasks in a split."""
        ...

    def start(self, split: Split, index: int, seed: int) -> Episode:
        """Open task `index`, the same one in every process, whatever the seed.

        IndexError unless 0 <= index < size(split).

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

    def format_response(self, thought: str, action: str) -> str:
        """The response that `parse` reads as a valid `action`.

        An expert's turn is written down in this form.
        """
        ...

    def expert(self, episode: Episode, rng: random.Random) -> Expert:
        """A demonstrator for `episode`; `rng` varies its wording and little else.

        ValueError if nobody can demonstrate it.
        """
        ...
