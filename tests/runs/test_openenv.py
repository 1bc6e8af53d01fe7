"""Environments behind a server of OpenEnv: the package's own, in a thread.

Here, and not among the units: it takes seconds to import, once for all tests of this file.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.adapters import openenv
from envs.adapters.openenv import OpenEnv
from envs.base import EnvironmentFailure
from envs.conversation import Message, ToolCall
from envs.registry import make_environment
from tests.fixtures.openenv import Action, Served, Unseeded, serve
from tests.fixtures.runs import select_trained, serial_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve() as served:
        yield served


def guess(number: object, id: str = "a") -> Message:
    """A message that calls the tool."""
    return Message("assistant", tool_calls=(ToolCall("act", {"number": number}, id),))


def test_tool_has_the_fields_of_an_action(served: Served) -> None:
    environment = make_environment(f"openenv:{served.url}")
    (tool,) = environment.tools
    assert tool["function"]["parameters"]["properties"] == {
        "number": {"title": "Number", "type": "integer"}
    }


def test_actions_earn_the_servers_rewards_until_it_is_done(served: Served) -> None:
    task = OpenEnv(served.url).start("train", 6, 0)
    assert task.messages[-1].content.endswith("Say a number from 1 to 15.")
    first = task.reply(guess(3))
    assert (first.messages, first.reward, first.done) == (
        [Message("tool", "Larger.", tool_call_id="a")],
        -0.1,
        False,
    )
    last = task.reply(guess(7))
    assert (last.done, last.success, last.reward) == (True, True, 1.0)
    assert task.scores == {"return": pytest.approx(0.9)}
    task.close()


def test_several_calls_are_taken_until_the_task_is_done(served: Served) -> None:
    task = OpenEnv(served.url).start("train", 6, 0)
    calls = [ToolCall("act", {"number": number}, str(number)) for number in (3, 9, 7, 8)]
    reply = task.reply(Message("assistant", tool_calls=tuple(calls)))
    assert reply.done and reply.success and reply.reward == pytest.approx(0.8)
    task.close()


def test_words_are_the_action_where_a_field_is_named(served: Served) -> None:
    environment = OpenEnv(served.url, action_field="number", task="Guess.")
    assert environment.tools == ()
    task = environment.start("held_out", 0, 0)
    assert task.messages[0].content == "Guess.\nSay a number from 1 to 15."
    wrong = task.reply(Message("assistant", "seven"))
    assert not wrong.valid and wrong.messages[0].content.startswith(
        "error: Invalid message; number"
    )
    assert task.reply(Message("assistant", str(100_000 % 15 + 1))).success
    task.close()


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (guess("seven"), "error: Invalid message; number: Input should be a valid integer"),
        (Message("assistant", tool_calls=(ToolCall("move", {}),)), "error: there is no tool move"),
        (Message("assistant", tool_calls=(ToolCall("act", error="no JSON"),)), "error: the call"),
        (Message("assistant", "seven"), "Call the tool act."),
    ],
)
def test_action_that_is_none_is_told_and_the_task_goes_on(
    served: Served, message: Message, answer: str
) -> None:
    task = OpenEnv(served.url).start("train", 6, 0)
    reply = task.reply(message)
    assert reply.messages[0].content.startswith(answer) and not reply.done
    assert task.reply(guess(7)).success
    task.close()


def test_same_task_is_opened_for_every_seed_and_splits_share_no_seed(served: Served) -> None:
    environment = OpenEnv(served.url)
    for seed in (0, 1):
        task = environment.start("train", 14, seed)
        assert task.reply(guess(15)).success
        task.close()
    with pytest.raises(IndexError):
        environment.start("train", environment.size("train"), 0)


def test_environment_that_breaks_ends_its_own_episode(served: Served) -> None:
    environment = OpenEnv(served.url)
    broken = environment.start("train", 6, 0)
    other = environment.start("train", 6, 0)
    with pytest.raises(EnvironmentFailure, match="fails: the game is broken"):
        broken.reply(guess(0))
    assert other.reply(guess(7)).success
    for task in (broken, other):
        task.close()


def test_close_gives_the_session_to_who_waits_for_one() -> None:
    with serve(most=1) as served:
        environment = OpenEnv(served.url)
        first = environment.start("train", 0, 0)
        opened = []
        waiting = threading.Thread(target=lambda: opened.append(environment.start("train", 1, 0)))
        waiting.start()
        first.close()
        waiting.join()
        opened[0].close()


def test_server_without_sessions_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(most=1) as served:
        environment = OpenEnv(served.url)
        task = environment.start("train", 0, 0)
        monkeypatch.setattr(openenv, "CAPACITY_WAIT_S", 0)
        with pytest.raises(EnvironmentFailure, match=r"opens no session: .*max_concurrent_envs"):
            environment.start("train", 1, 0)
        task.close()


def test_server_that_ends_is_told_of() -> None:
    with serve() as served:
        environment = OpenEnv(served.url)
        task = environment.start("train", 0, 0)
    with pytest.raises(EnvironmentFailure, match=f"{served.url} ended the session"):
        task.reply(guess(3))
    task.close()
    with pytest.raises(EnvironmentFailure, match="cannot be reached"):
        environment.start("train", 0, 0)


def test_make_names_what_is_wrong(served: Served) -> None:
    with pytest.raises(ValueError, match="openenv: has no address like"):
        make_environment("openenv")
    with pytest.raises(ValueError, match="no field 'text', but number"):
        OpenEnv(served.url, action_field="text")
    with pytest.raises(EnvironmentFailure, match="/schema does not tell the fields"):
        OpenEnv(f"{served.url}/elsewhere")
    with (
        serve(Unseeded) as unseeded,
        pytest.raises(ValueError, match="begins differently each time with the same seed"),
    ):
        OpenEnv(unseeded.url)
    with serve(action=Action) as without, pytest.raises(ValueError, match="no fields of its own"):
        OpenEnv(without.url)


def test_environment_of_a_server_is_trained_in(
    tmp_path: Path, small_policy: Path, served: Served
) -> None:
    settings = {"env__name": f"openenv:{served.url}", "model__name": str(small_policy)}
    settings["env__settings__action_field"] = "number"
    summary, trajectories, _ = serial_run(tmp_path / "run", **settings)
    assert summary["ended"] == "finished" and select_trained(trajectories)
    deadline = time.monotonic() + 10
    while served.sessions.active_sessions and time.monotonic() < deadline:
        time.sleep(0.01)
    assert served.sessions.active_sessions == 0
