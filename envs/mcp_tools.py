"""Tools of a conversation that an MCP server has, which a command starts.

The server speaks over its standard input and output. Each episode has a process of its own: what
its tools do to files or to memory is seen by no other episode, and one that dies or hangs costs no
other. It starts with the first call, and ends with the episode.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import IO, Any, Self

from envs.base import EnvironmentFailure
from envs.conversation import Message, answer_calls
from envs.user_errors import describe_error, to_printable

try:
    from anyio.from_thread import BlockingPortal, start_blocking_portal
    from mcp import Client, MCPError, StdioServerParameters, stdio_client
    from mcp_types import (
        CONNECTION_CLOSED,
        REQUEST_TIMEOUT,
        CallToolResult,
        ListToolsResult,
        TextContent,
        Tool,
    )
except ImportError as error:
    raise ValueError(
        f"envs.mcp_tools needs a package that is not installed ({error}): pip install -e '.[mcp]'"
    ) from None

START_TIMEOUT_S = 20.0
CALL_TIMEOUT_S = 10.0
"""Both happen in the turn of the first call, which `actor.step_timeout` ends."""

_DIES_WITH_PARENT = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""
"""Program that becomes the server: the kernel kills it when the actor is killed."""


class McpServer:
    """A command that starts an MCP server.

    `env` are environment variables beside PATH, HOME and the like, which are all that it inherits.
    It may take `start_timeout_s` seconds to start, and `call_timeout_s` to answer a call.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
        call_timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        if isinstance(command, str) or not command:
            raise ValueError(f"McpServer: the command is a list of words, not {command!r}")
        self.command = tuple(command)
        self.env = dict(env or {})
        self.start_timeout_s = start_timeout_s
        self.call_timeout_s = call_timeout_s

    def list_tools(self) -> tuple[dict[str, Any], ...]:
        """Start a server, ask for its tools, and end it: the `tools` of an environment.

        EnvironmentFailure if it does not start, or does not answer.
        """
        with self.open() as session:
            return session.list_tools()

    def open(self) -> McpSession:
        """Open the session of an episode; close it in the episode's `close`."""
        return McpSession(self)


class McpSession:
    """One episode's server process. Used in one thread at a time."""

    def __init__(self, server: McpServer) -> None:
        self._server = server
        self._resources = contextlib.ExitStack()
        self._connection: tuple[BlockingPortal, Client] | None = None
        self._log: IO[str] | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def list_tools(self) -> tuple[dict[str, Any], ...]:
        """Ask for the server's tools, as JSON schemas in OpenAI's form."""
        tools: list[dict[str, Any]] = []
        cursor = None
        while True:
            page = self._ask("what its tools are", _list_page, cursor)
            tools += [_to_schema(tool) for tool in page.tools]
            cursor = page.next_cursor
            if not cursor:
                return tuple(tools)

    def call(self, name: str, /, **arguments: Any) -> str:
        """Call a tool: its text, which begins with "error: " where the tool failed.

        EnvironmentFailure if the server ends, or does not answer in time.
        """
        try:
            result = self._ask(name, _call_tool, name, arguments, self._server.call_timeout_s)
        except MCPError as error:  # what the server says of the call
            return f"error: {error.message}"
        return _to_text(result)

    def answer_calls(self, message: Message) -> list[Message]:
        """Call the tools that a message names; returns one message of a tool for each call."""
        names = {call.name for call in message.tool_calls}
        return answer_calls(message, {name: functools.partial(self.call, name) for name in names})

    def close(self) -> None:
        """End the server: its input ends, and two seconds later it is told to, then killed."""
        self._closed = True
        self._resources.close()

    def _ask(self, what: str, ask: Callable[..., Awaitable[Any]], *values: object) -> Any:
        """Ask the server, which is started first. Raises MCPError for what it answers itself.

        EnvironmentFailure ends the session: a server that is late answers what was asked before.
        """
        if self._closed:
            raise EnvironmentFailure("the session of an MCP server is closed: open another one")
        try:
            portal, client = self._start()
            return portal.call(ask, client, *values)
        except Exception as error:
            cause = _find_cause(error)
            if isinstance(cause, MCPError) and cause.code not in (
                CONNECTION_CLOSED,
                REQUEST_TIMEOUT,
            ):
                raise cause from None
            reason = self._describe_failure(what, cause)
            self.close()
            raise EnvironmentFailure(reason) from None

    def _start(self) -> tuple[BlockingPortal, Client]:
        """Start the server and shake hands with it, unless it runs."""
        if self._connection is not None:
            return self._connection
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  the stack does
        self._resources.enter_context(self._log)
        portal = self._resources.enter_context(start_blocking_portal())
        program = ["-I", "-S", "-c", _DIES_WITH_PARENT, str(os.getpid())]
        parameters = StdioServerParameters(
            command=sys.executable, args=[*program, *self._server.command], env=self._server.env
        )
        client = Client(
            stdio_client(parameters, self._log),
            read_timeout_seconds=self._server.start_timeout_s,
            mode="legacy",  # the handshake that every server knows
            cache=None,
        )
        self._resources.enter_context(portal.wrap_async_context_manager(client))
        self._connection = (portal, client)
        return self._connection

    def _describe_failure(self, what: str, error: BaseException) -> str:
        """Say that the server failed, with its last line of standard error."""
        server = f"the MCP server {shlex.join(self._server.command)}"
        lines = self._read_log()
        words = f"; it wrote: {to_printable(lines[-1])}" if lines else ""
        if not isinstance(error, MCPError):
            return f"{server} failed ({what}): {describe_error(error)}{words}"
        if error.code != REQUEST_TIMEOUT:
            return f"{server} ended before it answered ({what}){words}"
        if self._connection is None:
            limit = f"start within {self._server.start_timeout_s:g} s (start_timeout_s)"
        else:
            limit = f"answer {what} within {self._server.call_timeout_s:g} s (call_timeout_s)"
        return f"{server} did not {limit}{words}"

    def _read_log(self) -> list[str]:
        """The lines of the server's standard error that say something."""
        if self._log is None:
            return []
        self._log.seek(0)
        lines = (line.strip() for line in self._log)
        return [line for line in lines if any(letter.isalnum() for letter in line)]


async def _list_page(client: Client, cursor: str | None) -> ListToolsResult:
    return await client.list_tools(cursor=cursor)


async def _call_tool(
    client: Client, name: str, arguments: dict[str, Any], timeout_s: float
) -> CallToolResult:
    return await client.call_tool(name, arguments, read_timeout_seconds=timeout_s)


def _find_cause(error: BaseException) -> BaseException:
    """Find the error in groups of one, which task groups wrap it in."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _to_schema(tool: Tool) -> dict[str, Any]:
    """Make a tool's schema in OpenAI's form."""
    function = {
        "name": tool.name,
        "description": tool.description or "",
        "parameters": tool.input_schema,
    }
    return {"type": "function", "function": function}


def _to_text(result: CallToolResult) -> str:
    """Make the text of a result, in which other content is named by its type."""
    parts = []
    for content in result.content:
        parts.append(content.text if isinstance(content, TextContent) else f"[{content.type}]")
    text = "\n".join(parts)
    if result.is_error:
        return f"error: {text}"
    return text
