"""A harness in a process of its own is played, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from envs.command import MODEL, CommandHarness
from envs.registry import make_environment
from protocol.lifetime import dying_with_parent, is_running
from protocol.messages import DropReason, TurnRequest
from protocol.openai_requests import MODEL as SERVED_MODEL
from tests.fixtures import ROOT
from tests.fixtures.episodes import LEASE
from tests.fixtures.harnesses import END, Script, playing

plays = pytest.mark.slow
"""Marks tests that start processes."""

AGENT = """
import json, os, subprocess, sys, time
from urllib.request import Request, urlopen

def post(path, body):
    key = os.environ["OPENAI_API_KEY"]
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    url = os.environ["OPENAI_BASE_URL"] + path
    with urlopen(Request(url, json.dumps(body).encode(), headers)) as answer:
        return json.load(answer)

def ask(question):
    messages = [{"role": "user", "content": question}]
    model = os.environ["OPENAI_MODEL"]
    answer = post("/chat/completions", {"model": model, "messages": messages})
    return answer["choices"][0]["message"]["content"]

def reward(value):
    with open(os.environ["FORAY_REWARD_FILE"], "w") as file:
        file.write(value)

task = os.environ["FORAY_TASK"]
"""


def command_of(code: str) -> str:
    """The command line of an agent with this code."""
    return shlex.join([sys.executable, "-S", "-E", "-c", AGENT + code])


async def play(code: str, take_turn: Any = None, **settings: Any) -> Any:
    """Play an episode of such an agent."""
    harness = CommandHarness(command_of(code))
    async with playing(harness, take_turn or Script([f"4{END}"]).take_turn, **settings) as player:
        return await player.play(LEASE)


@plays
@pytest.mark.parametrize(
    ("code", "success", "scores"),
    [
        ("reward('1.5')", True, {}),
        ('reward(\'{"reward": 1.5, "success": false, "scores": {"a": 2}}\')', False, {"a": 2.0}),
        ("post('/reward', {'reward': 1.5})", True, {}),
    ],
    ids=["number", "object", "post"],
)
async def test_command_is_played_and_its_reward_is_read(
    code: str, success: bool, scores: dict[str, float]
) -> None:
    script = Script([f"4{END}"])
    trajectory = await play(f"assert ask('What is ' + task) == '4'\n{code}", script.take_turn)
    assert trajectory.drop_reason is None, trajectory.detail
    assert [turn.reward for turn in trajectory.turns] == [1.5]
    assert (trajectory.success, trajectory.scores) == (success, scores)
    assert "What is 10005<" in script.read()[0]


@plays
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("ask('?')", "the harness gave no reward"),
        ("ask('?'); reward('high')", "wrote 'high' as its reward"),
        ("ask('?'); reward('1e999')", "as its reward"),
        ("ask('?'); print('the end'); sys.exit(3)", "ended with status 3; its last words: the end"),
        ("ask('?'); os.kill(os.getpid(), 9)", "was killed (SIGKILL"),
        ("reward('1')", "ended without a request"),
    ],
)
async def test_command_that_fails_drops_the_episode(code: str, words: str) -> None:
    trajectory = await play(code)
    assert trajectory.drop_reason is DropReason.ENV_ERROR
    assert words in trajectory.detail


LEAVES_A_CHILD = """
child = subprocess.Popen(["sleep", "1000"])
ask(f"{os.getpid()} {child.pid}")
"""


def pids_of(script: Script) -> list[int]:
    """The processes that the agent has told of in its question."""
    question = script.read()[0].split("\n")[1].removesuffix(END)
    return [int(word) for word in question.split()]


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@plays
async def test_command_leaves_none_of_its_processes() -> None:
    script = Script([f"4{END}"])
    trajectory = await play(f"{LEAVES_A_CHILD}reward('1')", script.take_turn)
    assert trajectory.success
    wait_until_gone(pids_of(script))


@plays
async def test_command_that_hangs_is_killed_with_its_children() -> None:
    script = Script([f"4{END}"])
    trajectory = await play(f"{LEAVES_A_CHILD}child.wait()", script.take_turn, step_timeout=1.0)
    assert trajectory.drop_reason is DropReason.ENV_ERROR
    assert "within 1 s (actor.step_timeout)" in trajectory.detail
    wait_until_gone(pids_of(script))


@plays
async def test_canceled_episode_kills_the_command() -> None:
    script = Script([f"4{END}"])
    asked = asyncio.Event()

    async def take_turn(request: TurnRequest) -> Any:
        await script.take_turn(request)
        asked.set()
        await asyncio.Event().wait()

    async with playing(CommandHarness(command_of(LEAVES_A_CHILD)), take_turn) as player:
        episode = asyncio.create_task(player.play(LEASE))
        await asked.wait()
        episode.cancel()
        await asyncio.wait({episode})
        await asyncio.to_thread(wait_until_gone, pids_of(script))


@plays
async def test_commands_do_not_meet() -> None:
    script = Script([f"4{END}"])
    code = "[ask(os.environ['OPENAI_API_KEY']) for _ in range(2)]; reward('1')"
    async with playing(CommandHarness(command_of(code)), script.take_turn) as player:
        played = await asyncio.gather(*(player.play(LEASE) for _ in range(4)))
    assert all(each.success for each in played)
    assert sorted(len({turn.prompt for turn in each.turns}) for each in played) == [1] * 4


def test_command_finds_its_task_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps({"number": number}) + "\n" for number in range(5)))
    harness: Any = make_environment(
        "harness", command="true", data=str(file), held_out_tasks=2, max_turns=3
    )
    assert (harness.size("train"), harness.size("held_out"), harness.max_turns) == (3, 2, 3)
    assert json.loads(harness.task("held_out", 0)) == {"number": 3}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, r"env\.settings\.command: the command line of your agent"),
        ({"command": "no-such-program x"}, r"there is no program 'no-such-program'"),
        ({"command": "a 'b"}, r"env\.settings\.command: "),
        ({"command": "true", "data": "/no/such/file"}, r"env\.settings\.data: "),
        ({"command": "true", "data": "LINES"}, r"line 2 of .* has to be a task"),
        ({"command": "true", "data": "LINE"}, r"held_out_tasks: 200, and .* has 1 tasks"),
    ],
)
def test_command_that_cannot_be_played_is_refused(
    tmp_path: Path, settings: dict[str, str], words: str
) -> None:
    (tmp_path / "LINES").write_text("a\n\nb\n")
    (tmp_path / "LINE").write_text("a\n")
    if "LINE" in settings.get("data", ""):
        settings = settings | {"data": str(tmp_path / settings["data"])}
    with pytest.raises(ValueError, match=words):
        make_environment("harness", **settings)


def test_command_asks_for_the_model_that_is_served() -> None:
    assert MODEL == SERVED_MODEL


ACTOR = """
import asyncio, sys
from envs.command import CommandHarness
from protocol.arrays import INT32, unpack
from tests.fixtures.harnesses import PROMPTER, playing
from tests.fixtures.messages import make_lease

async def take_turn(request):
    print(PROMPTER.decode_exactly(unpack(request.prompt, INT32).tolist()), flush=True)
    await asyncio.Event().wait()

async def main():
    async with playing(CommandHarness(sys.argv[1]), take_turn) as player:
        await player.play(make_lease())

asyncio.run(main())
"""


@plays
async def test_command_ends_with_an_actor_that_is_killed() -> None:
    actor = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ACTOR, command_of("ask(str(os.getpid()))")),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=dying_with_parent(),
    )
    assert actor.stdout is not None
    await actor.stdout.readline()
    pid = int((await actor.stdout.readline()).removesuffix(f"{END}\n".encode()))
    assert is_running(pid)
    actor.kill()
    await actor.wait()
    await asyncio.to_thread(wait_until_gone, [pid])
