"""Environments of SkyRL Gym behind our interface."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import skyrl_gym
from skyrl_gym.envs.base_text_env import BaseTextEnv

from envs.adapters.skyrl_gym import SkyRLGym, SkyRLTask
from envs.conversation import Message
from envs.registry import make_environment
from tests.fixtures.skyrl import make_sum, write_sums

SPLITS = ("train", "held_out")


def solution(task: SkyRLTask) -> str:
    """The right answer to a task of `make_sum`."""
    return f"#### {int(re.findall(r'[0-9]+', task.task)[0]) + 1}"


def test_right_answer_is_a_success_by_the_librarys_reward(tmp_path: Path) -> None:
    environment = SkyRLGym("gsm8k", str(write_sums(tmp_path)))
    task = environment.start("train", 0, 0)
    reply = task.reply(Message("assistant", f"I add. {solution(task)}", reasoning="#### 0"))
    assert (reply.reward, reply.done, reply.success) == (1.0, True, True)
    assert task.scores == {"reward": 1.0} and task.task_type in ("sums/0", "sums/1")
    wrong = environment.start("train", 0, 0).reply(Message("assistant", "#### 0"))
    assert (wrong.reward, wrong.done, wrong.success) == (0.0, True, False)


def test_conversation_goes_on_with_what_the_environment_says(tmp_path: Path) -> None:
    environment = SkyRLGym("gsm8k_multi_turn", str(write_sums(tmp_path)), max_turns=3)
    task = environment.start("train", 0, 0)
    first = task.reply(Message("assistant", "#### 0"))
    assert not first.done and "tentative numeric answer" in first.messages[0].content
    last = task.reply(Message("assistant", solution(task)))
    assert last.done and last.success and task.scores["reward"] == first.reward + 1


def test_environment_is_told_the_limit_of_turns(tmp_path: Path) -> None:
    task = SkyRLGym("gsm8k_multi_turn", str(write_sums(tmp_path)), max_turns=2).start("train", 0, 0)
    replies = [task.reply(Message("assistant", "#### 0")) for _ in range(2)]
    assert [reply.done for reply in replies] == [False, True] and not replies[-1].success


class Quiet(BaseTextEnv):
    """Says nothing, and reads its configuration; counts what is closed."""

    closed = 0

    def __init__(self, env_config: Any, extras: dict[str, Any]) -> None:
        super().__init__()
        self.limit = env_config.limit

    def step(self, action: str) -> dict[str, Any]:
        return {"observations": [], "reward": len(action) > self.limit, "done": False}

    def close(self) -> None:
        Quiet.closed += 1


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an environment that somebody registered."""
    specs = {"quiet": skyrl_gym.envs.registration.EnvSpec("quiet", Quiet)}
    monkeypatch.setattr(skyrl_gym, "registry", skyrl_gym.registry | specs)
    monkeypatch.setitem(skyrl_gym.envs.registration.registry, "quiet", specs["quiet"])
    monkeypatch.setattr(Quiet, "closed", 0)
    return "quiet"


def test_environment_that_says_nothing_has_its_silence_told(tmp_path: Path, quiet: str) -> None:
    environment = SkyRLGym(quiet, str(write_sums(tmp_path)), arguments=["limit=3"])
    closed = Quiet.closed
    task = environment.start("train", 0, 0)
    reply = task.reply(Message("assistant", "four"))
    assert (reply.reward, reply.done, len(reply.messages)) == (1.0, False, 1)
    task.close()
    assert Quiet.closed == closed + 1


def test_splits_share_no_prompt_whatever_the_order(tmp_path: Path) -> None:
    file = write_sums(tmp_path, 50)
    rows = file.read_text().splitlines(keepends=True)
    environment = SkyRLGym("gsm8k", str(file), held_out_share=0.2)
    held_out = {environment.start("held_out", i, 0).task for i in range(10)}
    train = {environment.start("train", i, 0).task for i in range(40)}
    assert [environment.size(split) for split in SPLITS] == [40, 10] and not train & held_out
    file.write_text("".join([*reversed(rows), rows[0]]))
    again = SkyRLGym("gsm8k", str(file), held_out_share=0.2)
    tasks = {again.start("held_out", i, 0).task for i in range(again.size("held_out"))}
    assert tasks == held_out


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        ("gsm9k", {}, "has no 'gsm9k'; it has .*did you mean skyrl-gym:gsm8k"),
        ("", {}, "has no ''; it has aime"),
        ("gsm8k", {"data": ""}, "env.settings.data: skyrl-gym has no tasks of its own"),
        ("gsm8k", {"data": "no/such.jsonl"}, "no/such.jsonl cannot be read"),
        ("gsm8k", {"arguments": ["limit"]}, "not of the form name=value"),
        ("aime", {}, "aime of skyrl-gym cannot play the tasks .*reward_model field is required"),
        ("quiet", {}, "with the env.settings.arguments given: .*no attribute 'limit'"),
    ],
)
def test_make_names_what_is_wrong(
    tmp_path: Path, quiet: str, target: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_environment(f"skyrl-gym:{target}", **{"data": str(write_sums(tmp_path))} | settings)


@pytest.mark.parametrize("prompt", [None, "2 + 2", [], [{"role": "user"}]])
def test_row_without_a_prompt_of_messages_is_refused(tmp_path: Path, prompt: object) -> None:
    file = write_sums(tmp_path)
    with file.open("a") as lines:
        lines.write(json.dumps(make_sum(20) | {"prompt": prompt}) + "\n")
    with pytest.raises(ValueError, match=r"line 21: prompt is no list of \{"):
        SkyRLGym("gsm8k", str(file))


def test_file_of_one_task_is_to_evaluate_alone(tmp_path: Path) -> None:
    file = str(write_sums(tmp_path, 1))
    with pytest.raises(ValueError, match="has only one task"):
        SkyRLGym("gsm8k", file)
    assert SkyRLGym("gsm8k", file, held_out_share=1).size("train") == 0
