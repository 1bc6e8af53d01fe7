"""Tasks of Reasoning Gym (Stojanovski et al., 2025): one question, one answer, its own scorer.

`--env reasoning-gym:leg_counting,chain_sum`
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from hashlib import blake2b
from typing import Any

from envs.base import Split
from envs.conversation import Message, Reply
from envs.settings import parse_argument

try:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS
    from reasoning_gym.utils import extract_answer
except ImportError as error:
    raise ValueError(
        f"env.name: reasoning-gym needs a package that is not installed ({error}): pip install -e "
        "'.[reasoning-gym]'"
    ) from None

SIZES: dict[Split, int] = {"train": 8_000, "held_out": 500}
"""Tasks of each data set."""

_POSITIONS = SIZES["train"]

HELD_OUT_ONE_IN = 4
"""Questions of which one is held out, by its text: some data sets draw few different ones."""

_STRIDE: dict[Split, int] = {"train": 1, "held_out": _POSITIONS // SIZES["held_out"]}

_MAX_DRAWS = 64

_SEED = 0

INSTRUCTION = "Think first, then give your answer between <answer> and </answer>."

_VARYING = ("isomorphic_strings", "polynomial_multiplication", "ransom_note")
"""Data sets whose questions depend on the order of a set, which differs between processes."""

RUN_ANSWERS = (
    "binary_matrix",
    "countdown",
    "intermediate_integration",
    "n_queens",
    "puzzle24",
    "simple_integration",
    "spiral_matrix",
    "string_insertion",
)
"""Data sets whose scorers hand the answer to `eval`, or to SymPy, which does."""


class ReasoningGymTask:
    """One question: a `Conversation`, which the policy's first message ends.

    `scores` has `score`, from 0 to 1, which is the reward, too.
    """

    def __init__(self, data_set: str, scorer: Any, entry: dict[str, Any]) -> None:
        self.task_type = data_set
        self.task = entry["question"]
        self.messages = [Message("system", INSTRUCTION), Message("user", self.task)]
        self.scores = {"score": 0.0}
        self._scorer = scorer
        self._entry = entry

    def reply(self, message: Message) -> Reply:
        """Score the last text between the tags; without them the answer is none."""
        answer = extract_answer(message.content)
        score = self._score(answer)
        self.scores = {"score": score}
        return Reply(reward=score, done=True, success=score >= 1, valid=answer is not None)

    def _score(self, answer: str | None) -> float:
        """Score an answer: 0 for one that the scorer cannot read."""
        if answer is None:
            return 0.0
        try:
            return float(self._scorer.score_answer(answer, self._entry))
        except ImportError:
            raise
        except Exception:  # the policy chose the text, and scorers raise whatever parsers do
            return 0.0


class ReasoningGym:
    """Data sets of Reasoning Gym, mixed evenly, as a `ConversationEnvironment`.

    `target` names them, with commas between. Settings: `arguments`, of their configurations;
    `run_answers`, to play those of RUN_ANSWERS.
    """

    name = "reasoning-gym"
    max_turns = 1
    tools = ()

    def __init__(
        self, target: str = "", arguments: Sequence[str] = (), run_answers: bool = False
    ) -> None:
        self._names = _split_names(target)
        running = [name for name in self._names if name in RUN_ANSWERS]
        if running and not run_answers:
            raise ValueError(
                f"env.settings.run_answers: {', '.join(running)} of reasoning-gym runs the "
                "policy's answer as Python code, to score it; leave it out, or set it to true "
                "where such code can do no harm"
            )
        configurations = _split_arguments(arguments, self._names)
        self._data_sets = [_make_data_set(name, configurations[name]) for name in self._names]
        # Members of a group, and evaluations, ask for the same tasks again; some take seconds.
        self._find_entry = functools.lru_cache(maxsize=4096)(self._draw_entry)

    def size(self, split: Split) -> int:
        """Number of tasks of a split, of all data sets together."""
        return SIZES[split] * len(self._names)

    def start(self, split: Split, index: int, seed: int) -> ReasoningGymTask:
        """Open a task; nothing in it is drawn while it is played.

        ValueError where a data set has too few different questions to hold some out.
        """
        del seed
        if not 0 <= index < self.size(split):
            raise IndexError(f"{split} has tasks 0 to {self.size(split) - 1}, not {index}")
        number, place = divmod(index, len(self._names))
        entry = deepcopy(self._find_entry(split, place, number))
        return ReasoningGymTask(self._names[place], self._data_sets[place], entry)

    def _draw_entry(self, split: Split, place: int, number: int) -> dict[str, Any]:
        """Draw from a data set, at positions that belong to a task, what is of its split."""
        first = number * _STRIDE[split]
        for step in range(_MAX_DRAWS):
            entry = self._data_sets[place][(first + step) % _POSITIONS]
            if split_of(entry["question"]) == split:
                return entry
        raise ValueError(
            f"env.name: {self._names[place]} draws too few different questions to hold some out; "
            "give it other env.settings.arguments"
        )


def split_of(question: str) -> Split:
    """Tell the split of a question, by its text alone."""
    digest = blake2b(question.encode("utf-8", "backslashreplace"), digest_size=8).digest()
    if int.from_bytes(digest) % HELD_OUT_ONE_IN == 0:
        return "held_out"
    return "train"


def _split_names(target: str) -> list[str]:
    """List the data sets that are named; ValueError that names all that do not exist."""
    names = list(dict.fromkeys(name.strip() for name in target.split(",") if name.strip()))
    if not names:
        raise ValueError("env.name: say which data sets: reasoning-gym:NAME[,NAME...]")
    unknown = [_describe_unknown(name, DATASETS) for name in names if name not in DATASETS]
    if unknown:
        raise ValueError(f"env.name: reasoning-gym has no data set {' and no '.join(unknown)}")
    for name in names:
        if name in _VARYING:
            raise ValueError(
                f"env.name: {name} of reasoning-gym draws other questions in each process, so that "
                "a group would answer different ones; leave it out"
            )
    return names


def _describe_unknown(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"{name!r} (is {near[0]} meant?)"
    return repr(name)


def _split_arguments(arguments: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Sort arguments by data set: `NAME.argument=value` is of one, `argument=value` of each."""
    configurations: dict[str, dict[str, Any]] = {name: {} for name in names}
    for text in arguments:
        argument, value = parse_argument(text)
        data_set, dot, inner = argument.rpartition(".")
        if dot and data_set not in configurations:
            raise ValueError(
                f"env.settings.arguments: {data_set!r} in {text!r} is none of the data sets that "
                f"are played: {', '.join(names)}"
            )
        for name in [data_set] if dot else names:
            configurations[name][inner] = value
    return configurations


def _make_data_set(name: str, configuration: Mapping[str, Any]) -> Any:
    """Make a data set; ValueError for arguments that it does not take, or one of no use."""
    fields = [field.name for field in dataclasses.fields(DATASETS[name][1])]
    allowed = [field for field in fields if field not in ("seed", "size")]
    unknown = [_describe_unknown(one, allowed) for one in configuration if one not in allowed]
    if unknown:
        raise ValueError(
            f"env.settings.arguments: {name} has no argument {' and no '.join(unknown)}; it has "
            f"{', '.join(allowed)}"
        )
    try:
        data_set = reasoning_gym.create_dataset(name, seed=_SEED, size=_POSITIONS, **configuration)
        questions = {data_set[0]["question"] for _ in range(2)}
    except Exception as error:  # whatever checks its configuration
        raise ValueError(f"env.settings.arguments: {name} cannot be made: {error}") from None
    if len(questions) > 1:
        raise ValueError(
            f"env.name: {name} of reasoning-gym draws another question each time, so that a group "
            "would answer different ones; leave it out"
        )
    return data_set
