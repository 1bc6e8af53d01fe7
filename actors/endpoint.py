"""An actor's endpoint: OpenAI's protocol on this machine's loopback, for harnesses.

Each episode has a key of its own, by which its requests are known. They wait in its session, until
its stage takes them (actors/harness_stage.py). The server has a thread and an event loop of its
own, so that neither harnesses nor the actor's sockets wait for each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import queue
import secrets
import threading
from collections.abc import Iterable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from protocol.openai_answers import (
    Answered,
    build_chat_chunks,
    build_chat_completion,
    build_completion,
)
from protocol.openai_requests import (
    IGNORED,
    MODEL,
    AnyRequest,
    RequestError,
    Wanted,
    read_chat_request,
    read_completion_request,
)
from telemetry.probes.clocks import epoch_seconds

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"

MAX_REQUEST_BYTES = 64 << 20
"""Bytes of the largest request that is read."""


@dataclass(frozen=True, eq=False, slots=True)
class Ask:
    """A request, and its answer to be."""

    request: AnyRequest
    answer: Future[Answered] = field(default_factory=Future)

    def refuse(self, error: RequestError) -> None:
        """Answer by an error, if somebody still waits."""
        with contextlib.suppress(InvalidStateError):
            self.answer.set_exception(error)

    def resolve(self, answered: Answered) -> None:
        """Answer it, if somebody still waits."""
        with contextlib.suppress(InvalidStateError):
            self.answer.set_result(answered)


@dataclass(frozen=True, slots=True)
class HarnessEnd:
    """The end of a harness: what it returned, or how it failed."""

    value: Any = None
    error: BaseException | None = None


class Session:
    """The requests of one episode, from any thread, up to the end of its harness."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.key = secrets.token_urlsafe(24)
        self.posted: float | None = None
        """The reward that was posted last."""
        self._events: queue.SimpleQueue[Ask | HarnessEnd] = queue.SimpleQueue()
        self._asks: set[Ask] = set()  # without an answer
        self._lock = threading.Lock()
        self._is_over = False

    def ask(self, request: AnyRequest) -> Ask:
        """Have a request wait for its answer; RequestError once the episode is over."""
        ask = Ask(request)
        with self._lock:
            if self._is_over:
                raise _episode_is_over()
            self._asks.add(ask)
        ask.answer.add_done_callback(lambda _: self._forget(ask))
        self._events.put(ask)
        return ask

    def take(self, seconds: float) -> Ask | HarnessEnd | None:
        """Wait for the next request that somebody waits for, or the end; None if neither comes."""
        try:
            event = self._events.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return None
        return event

    def end(self, end: HarnessEnd) -> None:
        """Note that the harness has ended: its requests have nobody who waits for them."""
        self.refuse_all()
        self._events.put(end)

    def refuse_all(self) -> None:
        """Refuse all requests without an answer, and those to come."""
        with self._lock:
            self._is_over = True
            asks = list(self._asks)
        for ask in asks:
            ask.refuse(_episode_is_over())

    def _forget(self, ask: Ask) -> None:
        with self._lock:
            self._asks.discard(ask)


def _episode_is_over() -> RequestError:
    return RequestError("the episode is over", status=410, code="episode_over")


class Endpoint:
    """The server, and the sessions of its episodes by their keys."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._reported: set[str] = set()  # parameters that the log knows to be ignored
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="endpoint")
        self._runner: web.AppRunner | None = None
        self.base_url = ""
        """Address of the server: http://127.0.0.1:PORT/v1."""

    def start(self) -> None:
        """Begin to serve, on a port that is free."""
        self._thread.start()
        self._call(self._start())

    def close(self) -> None:
        """End the server, and with it all requests."""
        for session in list(self._sessions.values()):
            session.refuse_all()
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def open_session(self) -> Session:
        """Open the session of an episode."""
        session = Session(self.base_url)
        self._sessions[session.key] = session
        return session

    def close_session(self, session: Session) -> None:
        """Close a session, whose key is worth nothing from now on."""
        self._sessions.pop(session.key, None)
        session.refuse_all()

    def _call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self) -> None:
        app = web.Application(middlewares=[_answer_errors], client_max_size=MAX_REQUEST_BYTES)
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_get(f"/v1/models/{MODEL}", self._show_model)
        app.router.add_post("/v1/chat/completions", self._complete_chat)
        app.router.add_post("/v1/completions", self._complete_text)
        app.router.add_post("/v1/reward", self._take_reward)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.0
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, LOOPBACK, 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.base_url = f"http://{LOOPBACK}:{port}/v1"

    async def _stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def _session_of(self, request: web.Request) -> Session:
        """Return the session whose key a request has; RequestError without one."""
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        session = self._sessions.get(key.strip())
        if scheme.lower() != "bearer" or session is None:
            raise RequestError(
                "this API key is of no episode that is being played; give the client's own",
                status=401,
                code="invalid_api_key",
            )
        return session

    async def _list_models(self, request: web.Request) -> web.Response:
        self._session_of(request)
        return web.json_response({"object": "list", "data": [_describe_model()]})

    async def _show_model(self, request: web.Request) -> web.Response:
        self._session_of(request)
        return web.json_response(_describe_model())

    async def _take_reward(self, request: web.Request) -> web.Response:
        session = self._session_of(request)
        try:
            reward = msgspec.json.decode(await request.read(), type=dict[str, float])["reward"]
        except (msgspec.MsgspecError, KeyError):
            reward = math.nan
        if not math.isfinite(reward):
            raise RequestError('the reward: {"reward": NUMBER} belongs there', param="reward")
        session.posted = reward
        return web.json_response({"reward": reward})

    async def _complete_chat(self, request: web.Request) -> web.StreamResponse:
        session = self._session_of(request)
        asked = read_chat_request(await request.read())
        self._report_ignored(asked.wanted)
        answered = await asyncio.wrap_future(session.ask(asked).answer)
        name = f"chatcmpl-{secrets.token_hex(12)}"
        created = int(epoch_seconds())
        if asked.wanted.stream:
            usage = asked.wanted.include_usage
            return await _stream(request, build_chat_chunks(answered, name, created, usage))
        return web.json_response(build_chat_completion(answered, name, created))

    async def _complete_text(self, request: web.Request) -> web.StreamResponse:
        session = self._session_of(request)
        asked = read_completion_request(await request.read())
        self._report_ignored(asked.wanted)
        answered = await asyncio.wrap_future(session.ask(asked).answer)
        name = f"cmpl-{secrets.token_hex(12)}"
        completion = build_completion(answered, name, int(epoch_seconds()))
        if asked.wanted.stream:
            return await _stream(request, [completion])
        return web.json_response(completion)

    def _report_ignored(self, wanted: Wanted) -> None:
        """Log each parameter that is ignored once."""
        for name in wanted.ignored:
            if name not in self._reported:
                self._reported.add(name)
                log.warning("a harness sets %s, which is ignored: %s decides", name, IGNORED[name])


async def _stream(request: web.Request, chunks: Iterable[dict[str, Any]]) -> web.StreamResponse:
    """Send the chunks of an answer that is complete, as events."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    with contextlib.suppress(ConnectionResetError):  # the client has gone
        await response.prepare(request)
        for chunk in chunks:
            await response.write(b"data: " + msgspec.json.encode(chunk) + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
    return response


def _describe_model() -> dict[str, Any]:
    return {"id": MODEL, "object": "model", "created": 0, "owned_by": "foray"}


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer errors in OpenAI's form."""
    try:
        return await handler(request)
    except RequestError as error:
        return web.json_response(error.to_json(), status=error.status)
    except web.HTTPRequestEntityTooLarge:
        error = RequestError(f"the request has more than {MAX_REQUEST_BYTES >> 20} MB", status=413)
        return web.json_response(error.to_json(), status=413)
    except web.HTTPNotFound:
        error = RequestError(f"the endpoint has no {request.method} {request.path}", status=404)
        return web.json_response(error.to_json(), status=404)
