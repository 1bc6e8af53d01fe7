"""Environments behind a server of OpenEnv (Meta, Hugging Face, 2025).

`--env openenv:http://127.0.0.1:8000`

An episode is a session of the server: one WebSocket at `/ws`, over which it is reset and stepped.
(The server's HTTP routes keep nothing from one request to the next.) Nothing of the environment has
to be installed here: an action is what the server's schema says.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import SplitResult, urlsplit

from envs.base import EnvironmentFailure, Split
from envs.conversation import Message, Reply, ToolCall
from envs.games.game import MAX_TURNS, SIZES, seed_of
from envs.search.remote import find_route, is_loopback
from envs.user_errors import to_printable

try:
    from websockets.exceptions import ConnectionClosed, WebSocketException
    from websockets.sync.client import ClientConnection, connect
except ImportError as error:
    raise ValueError(
        f"env.name: openenv needs a package that is not installed ({error}): pip install -e "
        "'.[openenv]'"
    ) from None

TIMEOUT_S = 20.0
"""Seconds that a server may take for an answer."""

CAPACITY_WAIT_S = 10.0
"""Seconds that an episode waits for a session, where the server has no more of them."""

_CAPACITY_PAUSE_S = 0.1

_CLOSE_TIMEOUT_S = 2.0

_MAX_MESSAGE_BYTES = 1 << 26

TOOL = "act"
"""Name of the tool that takes the fields of an action."""


class _ServerError(Exception):
    """The server answered with an error; `code` is one of its own."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        words = [str(data.get("message", "")), *_list_field_errors(data)]
        super().__init__(to_printable("; ".join(words)))
        self.code = str(data.get("code", ""))


class OpenEnvServer:
    """The address of a server, and how it is asked."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._parts = _parse_url(self.url)

    def fetch(self, path: str) -> dict[str, Any]:
        """Get an object that the server tells without a session; EnvironmentFailure if not."""
        try:
            with find_route(self._parts).opener.open(self.url + path, timeout=TIMEOUT_S) as answer:
                value = json.loads(answer.read())
        except (OSError, ValueError) as error:
            raise EnvironmentFailure(
                f"{self.url} does not tell {path}: {to_printable(str(error))}"
            ) from None
        if not isinstance(value, dict):
            raise EnvironmentFailure(f"{self.url}{path} is no object of OpenEnv's")
        return value

    def open(self, seed: int) -> tuple[_Session, dict[str, Any]]:
        """Open a session and reset it: the session, and what it shows first.

        EnvironmentFailure if the server has no session to give.
        """
        deadline = time.monotonic() + CAPACITY_WAIT_S
        while True:
            session = _Session(self.url, self._connect)
            try:
                return session, session.ask("reset", {"seed": seed})
            except BaseException as error:
                session.close()
                if not isinstance(error, _ServerError):
                    raise
                hint = ""
                if error.code == "CAPACITY_REACHED":
                    hint = "; raise its max_concurrent_envs, or have fewer actors"
                if not hint or time.monotonic() > deadline:
                    raise EnvironmentFailure(
                        f"{self.url} opens no session: {error}{hint}"
                    ) from None
            time.sleep(_CAPACITY_PAUSE_S)

    def _connect(self) -> AbstractContextManager[ClientConnection]:
        scheme = "wss" if self._parts.scheme == "https" else "ws"
        path = f"{self._parts.path}/ws"
        straight = is_loopback(self._parts.hostname or "")
        return connect(
            self._parts._replace(scheme=scheme, path=path).geturl(),
            proxy=None if straight else True,
            open_timeout=TIMEOUT_S,
            close_timeout=_CLOSE_TIMEOUT_S,
            max_size=_MAX_MESSAGE_BYTES,
        )


class _Session:
    """A connection to a server, which plays one episode."""

    def __init__(
        self, url: str, connect: Callable[[], AbstractContextManager[ClientConnection]]
    ) -> None:
        self.url = url
        self._resources = contextlib.ExitStack()
        try:
            self._connection = self._resources.enter_context(connect())
        except (OSError, WebSocketException) as error:
            raise self._failure("cannot be reached", error) from None

    def ask(self, kind: str, data: object) -> dict[str, Any]:
        """Send one message and await its answer.

        Raises _ServerError for an error that the server tells, EnvironmentFailure for all else.
        """
        try:
            # A server that refuses a session says so and closes, whatever is sent.
            with contextlib.suppress(ConnectionClosed):
                self._connection.send(json.dumps({"type": kind, "data": data}))
            answer = json.loads(self._connection.recv(TIMEOUT_S))
            if answer["type"] == "error":
                raise _ServerError(answer["data"])
            if not isinstance(answer["data"], dict) or "observation" not in answer["data"]:
                raise ValueError("it has no observation")
            return answer["data"]
        except ConnectionClosed as error:
            raise self._failure("ended the session", error) from None
        except TimeoutError:
            raise EnvironmentFailure(
                f"{self.url} did not answer {kind} within {TIMEOUT_S:g} s"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, WebSocketException) as error:
            raise self._failure(f"answered {kind} with what is not OpenEnv's", error) from None

    def close(self) -> None:
        """End the session, and the connection."""
        with contextlib.suppress(ConnectionClosed, OSError):
            self._connection.send(json.dumps({"type": "close"}))
        self._resources.close()

    def _failure(self, what: str, error: Exception) -> EnvironmentFailure:
        """Make the failure that says what the server did, and why."""
        return EnvironmentFailure(f"{self.url} {what}: {to_printable(str(error))}")


class OpenEnvTask:
    """One session of a server: a `Conversation`.

    `scores` has `return`, the sum of its rewards. It is a success if it ends with a positive one.
    """

    task_type = "openenv"

    def __init__(self, server: OpenEnvServer, seed: int, task: str, action_field: str) -> None:
        self._action_field = action_field
        self._session, first = server.open(seed)
        shown = to_text(first["observation"])
        self.task = task
        self.messages = [Message("user", "\n".join(text for text in (task, shown) if text))]
        self.scores = {"return": 0.0}

    def reply(self, message: Message) -> Reply:
        """Take the actions that the policy's calls say, or the one that its words are."""
        if self._action_field:
            return self._act(message.content)
        if not message.tool_calls:
            return Reply([Message("user", f"Call the tool {TOOL}.")], valid=False)
        answers = []
        reward = 0.0
        for call in message.tool_calls:
            answer, earned, done = self._call(call)
            reward += earned
            if done:
                return Reply((), reward, True, success=earned > 0)
            answers.append(Message("tool", answer, tool_call_id=call.id))
        return Reply(answers, reward)

    def close(self) -> None:
        """End the session."""
        self._session.close()

    def _act(self, text: str) -> Reply:
        try:
            shown, reward, done = self._step({self._action_field: text})
        except _ServerError as error:
            return Reply([Message("user", f"error: {error}")], valid=False)
        following = () if done else [Message("user", shown)]
        return Reply(following, reward, done, success=done and reward > 0)

    def _call(self, call: ToolCall) -> tuple[str, float, bool]:
        """(answer, reward, done) of one call."""
        if call.error:
            return f"error: the call cannot be read: {call.error}", 0.0, False
        if call.name != TOOL:
            return f"error: there is no tool {call.name}, but {TOOL}", 0.0, False
        try:
            return self._step(call.arguments)
        except _ServerError as error:
            return f"error: {error}", 0.0, False

    def _step(self, action: Mapping[str, Any]) -> tuple[str, float, bool]:
        """(what is shown, reward, done) of one action; _ServerError for one that is none."""
        try:
            result = self._session.ask("step", dict(action))
        except _ServerError as error:
            if error.code == "VALIDATION_ERROR":
                raise
            raise EnvironmentFailure(f"{self._session.url} fails: {error}") from None
        reward = float(result.get("reward") or 0.0)
        self.scores = {"return": self.scores["return"] + reward}
        return to_text(result["observation"]), reward, bool(result.get("done"))


class OpenEnv:
    """An environment behind a server, as a `ConversationEnvironment`; a seed is a task.

    `target` is the server's address. Settings: `action_field`, the field of an action that the
    policy's words become, instead of a tool; `task`, what the policy is told first; `max_turns`.
    """

    name = "openenv"
    tools = ()

    def __init__(
        self, target: str = "", action_field: str = "", task: str = "", max_turns: int = MAX_TURNS
    ) -> None:
        self._server = OpenEnvServer(target)
        self.max_turns = max_turns
        self._action_field = action_field
        schema = _read_action_schema(self._server)
        fields = schema["properties"]
        if action_field and action_field not in fields:
            raise ValueError(
                f"env.settings.action_field: an action of {target} has no field {action_field!r}, "
                f"but {', '.join(fields)}"
            )
        self._task = task or str(self._server.fetch("/metadata").get("description") or "")
        if not action_field:
            function = {"name": TOOL, "description": "Take an action.", "parameters": schema}
            self.tools = ({"type": "function", "function": function},)
        first = self._show_first()
        if self._show_first() != first:
            raise ValueError(
                f"env.name: {target} begins differently each time with the same seed, so that a "
                "group would play different tasks: let its reset() draw by the seed alone"
            )

    def size(self, split: Split) -> int:
        """Number of seeds."""
        return SIZES[split]

    def start(self, split: Split, index: int, seed: int) -> OpenEnvTask:
        """Open a session with the seed of a task; the server draws by it alone."""
        del seed
        return self._start_with(seed_of(split, index))

    def _start_with(self, seed: int) -> OpenEnvTask:
        return OpenEnvTask(self._server, seed, self._task, self._action_field)

    def _show_first(self) -> str:
        """What the first task shows first."""
        task = self._start_with(0)
        task.close()
        return task.messages[0].content


def to_text(observation: object) -> str:
    """Write an observation out: a text as it is, the fields of an object a line each.

    An object of one field is as that field.
    """
    if isinstance(observation, str):
        return observation
    if not isinstance(observation, Mapping):
        return json.dumps(observation, ensure_ascii=False)
    if len(observation) == 1:
        return to_text(next(iter(observation.values())))
    return "\n".join(f"{name}: {to_text(value)}" for name, value in observation.items())


def _read_action_schema(server: OpenEnvServer) -> dict[str, Any]:
    """Read the schema of an action, without what every action may have."""
    schema = server.fetch("/schema").get("action")
    if not isinstance(schema, dict) or not isinstance(schema.get("properties"), dict):
        raise EnvironmentFailure(f"{server.url}/schema does not tell the fields of an action")
    fields = {name: field for name, field in schema["properties"].items() if name != "metadata"}
    if not fields:
        raise ValueError(
            f"env.name: an action of {server.url} has no fields of its own; environments whose "
            "actions are MCP tools cannot be played"
        )
    return schema | {"properties": fields}


def _list_field_errors(data: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with each field of an action."""
    errors = data.get("errors") or []
    return [f"{'.'.join(map(str, one.get('loc', ())))}: {one.get('msg')}" for one in errors]


def _parse_url(url: str) -> SplitResult:
    """Split an address; ValueError for what is none."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    except ValueError:  # a port that is no number
        pass
    raise ValueError(f"env.name: openenv:{url} has no address like http://127.0.0.1:8000")
