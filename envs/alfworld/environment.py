"""ALFWorld as an `Environment`: generated games or ALFWorld's own, with TextWorld's answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from envs.alfworld.engine import Engine
from envs.alfworld.expert import AlfWorldExpert
from envs.alfworld.files import find_games, read_game
from envs.alfworld.game import TASK_TYPES, Game, TaskType
from envs.alfworld.generate import SceneSize, generate_game
from envs.alfworld.memory import TranscriptMemory
from envs.alfworld.prompt import MemoryMode, build_prompt
from envs.alfworld.scenes import load_facts
from envs.base import Episode, Observation, ParsedAction, Split, StepResult
from envs.response import format_think_action, parse_think_action
from envs.view import AgentView

HeldOut = Literal["valid_unseen", "valid_seen"]

REWARD = 10.0
MAX_TURNS: dict[SceneSize, int] = {"small": 20, "real": 50}
SIZES: dict[Split, int] = {"train": 100_000, "held_out": 1024}


class AlfWorldEpisode:
    """One game being played. See `envs.base.Episode`."""

    def __init__(self, game: Game, max_turns: int) -> None:
        self._engine = Engine(game)
        self._turns_left = max_turns
        self._done = False
        self.scores: dict[str, float] = {}
        self.task = game.task
        self.task_type: str = game.goal.task_type
        # TextWorld's opening is a banner, the room and the task; the task has its own place in the
        # prompt.
        self.observation = self._observe(self._engine.opening().split("\n\n")[1])

    def step(self, action: str) -> StepResult:
        """Execute an action.

        One that is not admissible uses the turn, and changes nothing.
        """
        if self._done:
            raise RuntimeError("the episode is over: start another one")
        self.observation = self._observe(self._engine.step(action))
        self._turns_left -= 1
        won = self._engine.won()
        self._done = won or self._turns_left == 0
        return StepResult(
            self.observation,
            REWARD * won,
            self._done,
            won,
            truncated=self._done and not won,
        )

    def state_key(self) -> str:
        """The text and the actions that are shown now."""
        return "\n".join((self.observation.text, *self.observation.admissible))

    def _observe(self, text: str) -> Observation:
        return Observation(text, tuple(self._engine.admissible()))


class AlfWorld:
    """ALFWorld as an `Environment`.

    Settings: `data`, a directory with ALFWorld's own games (`json_2.1.1`, or the one that
    ALFWORLD_DATA points at), of which `held_out`, valid_unseen or valid_seen, is held out; without
    it, games are generated, with `scene_size` small (6 receptacles, 20 turns) or real (whole rooms;
    50 turns, as in ALFWorld's own); `max_turns` other than these; `task_types` to play (none named:
    all six, in equal parts if they are generated); `history`, past turns in the prompt; `memory`,
    what the prompt recalls beyond them: nothing, or what was seen where, and where nobody looked
    yet.

    Rooms of the split `train` never occur in `held_out` (but for valid_seen): the split is
    ALFWorld's own.
    """

    name = "alfworld"

    def __init__(
        self,
        scene_size: SceneSize = "small",
        task_types: Sequence[str] = (),
        max_turns: int = 0,
        history: int = 1,
        memory: MemoryMode = "contents",
        data: str = "",
        held_out: HeldOut = "valid_unseen",
    ) -> None:
        if scene_size not in MAX_TURNS:
            raise ValueError(
                f"env.settings.scene_size: {scene_size!r} is not one of {', '.join(MAX_TURNS)}"
            )
        if memory not in ("none", "contents"):
            raise ValueError(f"env.settings.memory: {memory!r} is neither none nor contents")
        unknown = set(task_types) - set(TASK_TYPES)
        if unknown:
            raise ValueError(
                f"env.settings.task_types: unknown {', '.join(sorted(unknown))}; known: "
                f"{', '.join(TASK_TYPES)}"
            )
        if held_out not in get_args(HeldOut):
            raise ValueError(
                f"env.settings.held_out: {held_out!r} is not one of {', '.join(get_args(HeldOut))}"
            )
        if data:
            scene_size = "real"
        self.max_turns = max_turns or MAX_TURNS[scene_size]
        self._scene_size: SceneSize = scene_size
        self._task_types: tuple[TaskType, ...] = tuple(
            t for t in TASK_TYPES if t in task_types or not task_types
        )
        self._history = history
        self._memory: MemoryMode = memory
        self._files: dict[Split, list[Path]] = {}
        if data:
            self._files = _find_splits(Path(data), held_out, self._task_types)
        load_facts()  # Before a fork, so that processes share it.

    def size(self, split: Split) -> int:
        """Number of games, which are made, or read, when they are started.

        There are none to train on where the data have no `train`.
        """
        if self._files:
            return len(self._files[split])
        return SIZES[split]

    def game(self, split: Split, index: int) -> Game:
        """The game that `start` plays."""
        if not 0 <= index < self.size(split):
            raise IndexError(f"{split} has tasks 0 to {self.size(split) - 1}, not {index}")
        if self._files:
            return read_game(self._files[split][index])
        # Seeding by a string is the same everywhere; seeding by a tuple would depend on Python's
        # hash seed.
        rng = random.Random(f"alfworld {split} {self._scene_size} {index}")
        task_type = self._task_types[index % len(self._task_types)]
        return generate_game(split, task_type, self._scene_size, rng)

    def start(self, split: Split, index: int, seed: int = 0) -> AlfWorldEpisode:
        """Open game `index` of `split`, in which nothing is drawn: `seed` makes no difference."""
        del seed
        return AlfWorldEpisode(self.game(split, index), self.max_turns)

    def view(self, episode: Episode) -> AgentView:
        """A fresh view.

        It always remembers everything; the setting decides how much of it the prompt shows.
        """
        return AgentView(
            episode.task, episode.observation, history=self._history, memory=TranscriptMemory()
        )

    def prompt(self, view: AgentView) -> str:
        """See `envs.alfworld.prompt`."""
        return build_prompt(view, self._memory)

    def parse(self, response: str, admissible: tuple[str, ...]) -> ParsedAction:
        """See `envs.response`."""
        return parse_think_action(response, admissible)

    def format_response(self, thought: str, action: str) -> str:
        """See `envs.response`."""
        return format_think_action(thought, action)

    def expert(self, episode: Episode, rng: random.Random) -> AlfWorldExpert:
        """See `envs.alfworld.expert`."""
        return AlfWorldExpert(episode.task, rng, informed=self._scene_size == "real")


def _find_splits(
    data: Path, held_out: HeldOut, task_types: Sequence[TaskType]
) -> dict[Split, list[Path]]:
    """The files of ALFWorld's own games, by split."""
    if (data / "json_2.1.1").is_dir():
        data = data / "json_2.1.1"
    splits: dict[Split, list[Path]] = {"held_out": find_games(data / held_out, task_types)}
    # Evaluation alone needs no games to train on.
    splits["train"] = []
    if (data / "train").is_dir():
        splits["train"] = find_games(data / "train", task_types)
    return splits
