"""Middleware of vLLM's server: lets in whoever knows the key, unless the engine is another run's.

Streams that have nothing to say are kept alive here, too, and our own routes are answered: the end
of a claim, and the hash of a file. Imports neither vllm nor torch.

vLLM's own --api-key guards generation, but not the routes that pause the engine or change its
weights.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import msgspec

from engine.constants import (
    ALIVE_HEADER,
    CHECK_ROUTE,
    CLAIM_ROUTE,
    ENGINE_KEY_VARIABLE,
    GATED_HEADER,
    RUN_HEADER,
)
from engine.plugin.file_check import check_file

OPEN = ("/health",)
"""Routes that need no key: they say nothing but that the engine lives."""

LAPSES_SECONDS = 30.0
"""Time after its last request after which an engine is a run's no more.

It is that of three of the questions by which a run finds out that its engines are there.
"""
TAKEN = "another run uses this engine; it is free when that ends, or {:g} s after it was killed"
TAKEN_STATUS = 423

MAX_CHECK_BYTES = 64 << 10
"""Longest request to hash a file: a path and a checksum."""

ALIVE_SECONDS = 10.0
"""Longest silence of a stream of events: a comment ends it."""
COMMENT = b": alive\n\n"
EVENTS = "text/event-stream"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def knows_key(authorization: str, key: str) -> bool:
    """Say whether the header `Authorization` has the key, in a time that says nothing of it.

    With an empty key, anybody has it.
    """
    return not key or hmac.compare_digest(authorization.encode(), bearer(key).encode())


def bearer(key: str) -> str:
    """Make the header that `knows_key` accepts."""
    return f"Bearer {key}"


class Claim:
    """The claim of a run on the engine.

    Two runs that put their weights into it would train on each other's tokens.
    """

    def __init__(self) -> None:
        self._run = ""
        self._until = 0.0  # by the monotonic clock

    def is_refused(self, run: str) -> bool:
        """Say whether the engine is another run's than `run`, which has it from now on if not.

        Whoever names no run ("") changes nothing.
        """
        now = time.monotonic()
        if not run:
            return False
        if run != self._run and now < self._until:
            return True
        self._run = run
        self._until = now + LAPSES_SECONDS
        return False

    def release(self, run: str) -> None:
        """End the claim of `run`, if it has one."""
        if run == self._run:
            self._until = 0.0


class LivelyStream:
    """A stream of events that says that it is alive whenever it was silent for ALIVE_SECONDS.

    A proxy acknowledges whatever it is sent: only bytes from the engine prove that it is there.
    """

    def __init__(self, write: Callable[[bytes, bool], Awaitable[None]]) -> None:
        """`write` sends a piece of the body, and is told whether more follows."""
        self._write = write
        self._lock = asyncio.Lock()  # a comment and a piece are not written at once
        self._takes_comments = True  # not within an event, nor after the last one
        self._last_write = time.monotonic()
        self._beating = asyncio.create_task(self._beat())

    async def send(self, piece: bytes, more: bool = True) -> None:
        """Write the next piece, which is the last one unless there are `more`."""
        async with self._lock:
            await self._write(piece, more)
            self._last_write = time.monotonic()
            if piece:
                self._takes_comments = piece.endswith((b"\n\n", b"\r\n\r\n"))
            if not more:
                self._beating.cancel()

    async def close(self) -> None:
        """Write no more comments."""
        self._beating.cancel()
        await asyncio.wait({self._beating})

    async def _beat(self) -> None:
        with contextlib.suppress(OSError):  # the client has gone
            while True:
                await asyncio.sleep(self._last_write + ALIVE_SECONDS - time.monotonic())
                async with self._lock:
                    await self._break_silence()

    async def _break_silence(self) -> None:
        if time.monotonic() < self._last_write + ALIVE_SECONDS:
            return
        if self._takes_comments:
            await self._write(COMMENT, True)
        self._last_write = time.monotonic()


class _Answer:
    """An answer on its way through the middleware, which marks it.

    If it is a stream of events, it is kept alive.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._stream: LivelyStream | None = None

    async def send(self, message: Message) -> None:
        """Pass an ASGI message on."""
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), (GATED_HEADER.lower().encode(), b"1")]
            streams = streams_events(dict(headers))
            if streams:
                headers += [
                    (name.lower().encode(), value.encode())
                    for name, value in lively_headers().items()
                ]
            await self._send({**message, "headers": headers})
            if streams:
                self._stream = LivelyStream(self._write)
        elif message["type"] == "http.response.body" and self._stream is not None:
            await self._stream.send(message.get("body", b""), message.get("more_body", False))
        else:
            await self._send(message)

    async def close(self) -> None:
        if self._stream is not None:
            await self._stream.close()

    async def _write(self, piece: bytes, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": more})


def lively_headers() -> dict[str, str]:
    """Make the headers of a LivelyStream, whose comments no proxy is to collect."""
    return {ALIVE_HEADER: f"{ALIVE_SECONDS:g}", "X-Accel-Buffering": "no"}


def streams_events(headers: dict[bytes, bytes]) -> bool:
    """Say whether comments can be put into a body with these ASGI headers."""
    fixed = b"content-length" in headers or b"content-encoding" in headers
    return headers.get(b"content-type", b"").startswith(EVENTS.encode()) and not fixed


class BearerAuthMiddleware:
    """ASGI middleware (vLLM's --middleware) that asks for the engine's key.

    It answers 401 without the key in the environment variable ENGINE_KEY_VARIABLE, and 423 to a
    run while the engine is another's. Answers have the header GATED_HEADER.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._key = os.environ.get(ENGINE_KEY_VARIABLE, "")
        self._claim = Claim()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            answer = _Answer(send)
            try:
                await self._enter(scope, receive, answer.send)
            finally:
                await answer.close()
        elif scope["type"] == "websocket":
            await self._enter(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _enter(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        known = knows_key(headers.get(b"authorization", b"").decode("latin-1"), self._key)
        run = headers.get(RUN_HEADER.lower().encode(), b"").decode("latin-1")
        refused = known and self._claim.is_refused(run)
        if known and not refused:
            asked = (scope.get("method"), scope["path"])
            if asked == ("DELETE", CLAIM_ROUTE):
                self._claim.release(run)
                return await _answer(send, 200, b"{}")
            if asked == ("POST", CHECK_ROUTE):
                status, answer = await answer_file_check(await _read_body(receive))
                return await _answer(send, status, answer)
        if scope["path"] in OPEN or (known and not refused):
            return await self._app(scope, receive, send)
        if known:
            return await _refuse(send, TAKEN_STATUS, TAKEN.format(LAPSES_SECONDS))
        return await _refuse(send, 401, "the key of this engine is needed")


class FileCheck(msgspec.Struct):
    """A file of weights, and the SHA-256 that it is to have."""

    path: str
    checksum: str


async def answer_file_check(body: bytes) -> tuple[int, bytes]:
    """Hash the file that a request (JSON of a FileCheck) names, beside everything else.

    Returns status and body of the answer: the file's identity, or what is wrong with it.
    """
    try:
        asked = msgspec.json.decode(body, type=FileCheck)
        identity = await asyncio.to_thread(check_file, Path(asked.path), asked.checksum)
    except (msgspec.MsgspecError, ValueError) as error:
        return 400, msgspec.json.encode({"error": {"message": str(error), "code": 400}})
    return 200, msgspec.json.encode({"identity": identity})


async def _read_body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_CHECK_BYTES or not message.get("more_body", False):
            return body


async def _refuse(send: Send, status: int, message: str) -> None:
    await _answer(
        send, status, f'{{"error": {{"message": "{message}", "code": {status}}}}}'.encode()
    )


async def _answer(send: Send, status: int, body: bytes) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", b"application/json")],
        }
    )
    await send({"type": "http.response.body", "body": body})
