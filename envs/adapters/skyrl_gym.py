"""Environments of SkyRL Gym (Cao et al., 2025), with tasks from a file of its own form.

`--env skyrl-gym:gsm8k --env.settings.data tasks.jsonl`
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from hashlib import blake2b
from types import SimpleNamespace
from typing import Any

from envs.base import Split
from envs.conversation import Message, Reply
from envs.search.jsonl import HELD_OUT_SHARE, read_rows
from envs.settings import parse_argument
from envs.user_errors import describe_error

try:
    import skyrl_gym
except ImportError as error:
    raise ValueError(
        f"env.name: skyrl-gym needs a package that is not installed ({error}): pip install -e "
        "'.[skyrl-gym]'"
    ) from None

MAX_TURNS = 10

_NO_OBSERVATION = "(nothing)"
"""What the policy reads where the environment says nothing, and goes on."""


class SkyRLTask:
    """One row of the file being played: a `Conversation`.

    Rewards are the environment's; a last one of at least 1 is a success. `scores` has `reward`,
    their sum.
    """

    def __init__(self, env: Any, prompt: list[dict[str, str]], task_type: str) -> None:
        self._env = env
        messages, _ = env.init(prompt)
        self.messages = [_to_message(message) for message in messages]
        self.task = self.messages[-1].content
        self.task_type = task_type
        self.scores = {"reward": 0.0}

    def reply(self, message: Message) -> Reply:
        """Hand the policy's words, without its thought, to the environment."""
        output = self._env.step(message.content)
        reward = float(output["reward"])
        done = bool(output["done"])
        self.scores = {"reward": self.scores["reward"] + reward}
        following = [_to_message(said) for said in output["observations"]]
        if not following and not done:
            following = [Message("user", _NO_OBSERVATION)]
        return Reply(following, reward, done, success=done and reward >= 1)

    def close(self) -> None:
        """Let go of what the environment holds open."""
        self._env.close()


class SkyRLGym:
    """An environment of SkyRL Gym as a `ConversationEnvironment`.

    `target` is its name there. Settings: `data`, a file of tasks; `held_out_share`; `arguments`, of
    its configuration; `max_turns`, which it is told, too.
    """

    name = "skyrl-gym"
    tools = ()

    def __init__(
        self,
        target: str = "",
        data: str = "",
        held_out_share: float = HELD_OUT_SHARE,
        arguments: Sequence[str] = (),
        max_turns: int = MAX_TURNS,
    ) -> None:
        self._target = _check_target(target)
        self.max_turns = max_turns
        self._arguments = dict(parse_argument(text) for text in arguments)
        if not data:
            raise ValueError(
                "env.settings.data: skyrl-gym has no tasks of its own; give a JSONL file of "
                '{"prompt": [{"role": "user", "content": ...}], "reward_spec": {...}, ...}'
            )
        self._rows = _split_rows(data, held_out_share)
        for split, rows in self._rows.items():
            if rows:
                self._try_first(split, data)

    def size(self, split: Split) -> int:
        """Number of tasks of a split."""
        return len(self._rows[split])

    def start(self, split: Split, index: int, seed: int) -> SkyRLTask:
        """Open a task; what its environment draws by itself is not known here."""
        del seed
        row = deepcopy(self._rows[split][index])
        prompt = row.pop("prompt")
        env = skyrl_gym.make(
            self._target,
            env_config=SimpleNamespace(**self._arguments),
            extras=row | {"max_turns": self.max_turns},
        )
        try:
            return SkyRLTask(env, prompt, str(row.get("data_source") or self._target))
        except BaseException:
            env.close()
            raise

    def _try_first(self, split: Split, data: str) -> None:
        """Raise ValueError where the first task of a split cannot be opened."""
        try:
            self.start(split, 0, 0).close()
        except Exception as error:  # a part that the row or the configuration lacks
            raise ValueError(
                f"env.settings.data: {self._target} of skyrl-gym cannot play the tasks of {data} "
                f"with the env.settings.arguments given: {describe_error(error)}"
            ) from None


def _check_target(target: str) -> str:
    """Return the name of an environment; ValueError for an unknown one, with the nearest."""
    if target in skyrl_gym.registry:
        return target
    names = ", ".join(skyrl_gym.registry)
    near = difflib.get_close_matches(target, skyrl_gym.registry, n=1)
    hint = f"; did you mean skyrl-gym:{near[0]}?" if near else ""
    raise ValueError(f"env.name: skyrl-gym has no {target!r}; it has {names}{hint}")


def _split_rows(path: str, held_out_share: float) -> dict[Split, list[dict[str, Any]]]:
    """Read the tasks of a file, and hold a share of them out, by their prompts alone.

    Rows with equal prompts are in the same split.
    """
    by_prompt: dict[bytes, list[dict[str, Any]]] = {}
    for where, row in read_rows(path, "env.settings.data"):
        _check_prompt(where, row.get("prompt"))
        digest = blake2b(repr(row["prompt"]).encode("utf-8", "backslashreplace")).digest()
        by_prompt.setdefault(digest, []).append(row)
    if len(by_prompt) < 2 and held_out_share < 1:
        raise ValueError(
            f"env.settings.data: {path} has only one task; one is needed to train on, and one to "
            "evaluate"
        )
    held_out = set(sorted(by_prompt)[: max(1, round(held_out_share * len(by_prompt)))])
    rows: dict[Split, list[dict[str, Any]]] = {"train": [], "held_out": []}
    for digest, equal in by_prompt.items():
        split: Split = "held_out" if digest in held_out else "train"
        rows[split] += equal
    return rows


def _check_prompt(where: str, prompt: object) -> None:
    """Raise ValueError for what is no list of messages."""
    if (
        not isinstance(prompt, list)
        or not prompt
        or not all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in prompt
        )
    ):
        raise ValueError(f'{where}: prompt is no list of {{"role": ..., "content": ...}}')


def _to_message(message: Mapping[str, Any]) -> Message:
    """Make a message of one in OpenAI's form."""
    return Message(message["role"], str(message["content"]))
