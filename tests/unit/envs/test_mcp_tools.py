"""Tools that an MCP server has: a real one, in a process of its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from envs.base import EnvironmentFailure
from envs.conversation import Message, ToolCall
from envs.mcp_tools import McpServer, McpSession
from envs.registry import make_environment
from protocol.lifetime import dying_with_parent, is_running
from tests.fixtures import ROOT
from tests.fixtures.mcp_environment import write_market

COMMAND = (sys.executable, "-P", str(ROOT / "tests" / "fixtures" / "mcp_server.py"))

# Each server takes a second of a core to start.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def session() -> Iterator[McpSession]:
    """A session that tests share, none of which ends it."""
    with McpServer(COMMAND).open() as session:
        yield session


def answer(session: McpSession, *calls: ToolCall) -> list[tuple[str, str]]:
    """(id, content) of each message that answers these calls."""
    answers = session.answer_calls(Message("assistant", tool_calls=calls))
    return [(message.tool_call_id, message.content) for message in answers]


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something outside is so."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


def test_tools_are_the_servers_with_their_schemas(session: McpSession) -> None:
    tools = {tool["function"]["name"]: tool["function"] for tool in session.list_tools()}
    assert list(tools) == ["add", "pid", "hang", "die"]
    assert tools["add"]["description"] == "Add two numbers."
    assert tools["add"]["parameters"]["required"] == ["first"]
    assert tools["add"]["parameters"]["properties"]["second"]["type"] == "integer"


def test_calls_of_a_message_are_answered_each_by_its_id(session: McpSession) -> None:
    calls = [ToolCall("add", {"first": 2, "second": 3}, "a"), ToolCall("add", {"first": 2}, "b")]
    assert answer(session, *calls) == [("a", "5"), ("b", "3")]


@pytest.mark.parametrize(
    "call",
    [
        ToolCall("add", {"first": "two"}),
        ToolCall("add", {}),
        ToolCall("add", {"self": 1, "name": 2}),
        ToolCall("subtract", {}),
        ToolCall("add", {}, error="no JSON"),
    ],
)
def test_error_of_a_call_is_its_answer_and_not_the_end(session: McpSession, call: ToolCall) -> None:
    assert answer(session, call)[0][1].startswith("error: ")
    assert session.call("add", first=1) == "2"


def test_close_ends_the_process_of_its_episode_alone(session: McpSession) -> None:
    other = McpServer(COMMAND).open()
    pid = int(other.call("pid"))
    assert pid != int(session.call("pid"))
    other.close()
    assert not is_running(pid) and session.call("add", first=1) == "2"
    other.close()
    with pytest.raises(EnvironmentFailure, match="closed: open another"):
        other.call("pid")


def test_server_that_dies_ends_the_episode_with_its_last_words() -> None:
    with (
        McpServer(COMMAND).open() as session,
        pytest.raises(
            EnvironmentFailure, match=r"ended before it answered \(die\); it wrote: no s"
        ),
    ):
        answer(session, ToolCall("die"))


def test_server_that_hangs_ends_the_episode_and_is_killed() -> None:
    with McpServer(COMMAND, call_timeout_s=0.2).open() as session:
        pid = int(session.call("pid"))
        with pytest.raises(EnvironmentFailure, match=r"did not answer hang within 0.2 s"):
            answer(session, ToolCall("hang"))
        assert not is_running(pid)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["sleep", "1000"], r"sleep 1000 did not start within 0.5 s \(start_timeout_s\)"),
        (["no-such-program"], "wrote: no-such-program: No such file or directory"),
        (["sh", "-c", "echo no key >&2; exit 1"], "ended before it answered .*wrote: no key"),
    ],
)
def test_server_that_does_not_start_is_named(command: list[str], message: str) -> None:
    with pytest.raises(EnvironmentFailure, match=message):
        McpServer(command, start_timeout_s=0.5).list_tools()


def test_command_that_is_one_text_is_refused() -> None:
    with pytest.raises(ValueError, match="a list of words"):
        McpServer("python server.py")


async def test_server_is_killed_with_the_process_of_its_episode(tmp_path: Path) -> None:
    """Even one that does not notice that its input has ended."""
    file = tmp_path / "pid"
    program = (
        "from envs.mcp_tools import McpServer\n"
        f"McpServer(['sh', '-c', 'echo $$ > {file}.new; mv {file}.new {file}; exec sleep 1000'])"
        ".list_tools()"
    )
    actor = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, preexec_fn=dying_with_parent()
    )
    try:
        await until(file.exists)
        pid = int(file.read_text())
        assert is_running(pid)
    finally:
        actor.kill()
        actor.wait()
    await until(lambda: not is_running(pid))


def test_environment_of_the_guide_is_played(tmp_path: Path) -> None:
    environment = make_environment(f"{write_market(tmp_path)}:Market")
    assert [tool["function"]["name"] for tool in environment.tools] == ["price"]
    purchase = environment.start("train", 0, 0)
    calls = [ToolCall("price", {"fruit": fruit}, fruit) for fruit in purchase.fruits]
    answers = purchase.reply(Message("assistant", tool_calls=tuple(calls))).messages
    price = sum(int(message.content) for message in answers)
    assert purchase.reply(Message("assistant", str(price))).success
    purchase.close()
