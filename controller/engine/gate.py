"""What vLLM's server asks before anything else: does the caller know the key, and is the engine another run's? Imports neither vllm
nor torch.

vLLM's own --api-key guards generation, but not the routes that pause the engine or change its weights.
"""

from __future__ import annotations

import hmac
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from controller.engine.names import ENGINE_KEY, RUN

OPEN = ("/health",)
"""Asked by whatever watches over processes; says nothing but that the engine lives."""

LAPSES_SECONDS = 30.0
"""After its last request, an engine is a run's no more: three of the questions by which a run finds out that its engines are there."""
TAKEN = "another run uses this engine; it is free {:g} s after that has ended"
TAKEN_STATUS = 423

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def knows_key(authorization: str, key: str) -> bool:
    """Whether the header `Authorization` has the key (with an empty one, anybody does), in a time that says nothing of it."""
    return not key or hmac.compare_digest(authorization.encode(), bearer(key).encode())


def bearer(key: str) -> str:
    """The header that `knows_key` accepts."""
    return f"Bearer {key}"


class Claim:
    """The run whose the engine is: two that put their weights into it would train on each other's tokens."""

    def __init__(self) -> None:
        self._run = ""
        self._until = 0.0  # by the monotonic clock

    def is_refused(self, run: str) -> bool:
        """Whether the engine is another run's than `run`, which has it from now on if not. Whoever names no run ("") changes nothing."""
        now = time.monotonic()
        if not run:
            return False
        if run != self._run and now < self._until:
            return True
        self._run = run
        self._until = now + LAPSES_SECONDS
        return False


class Gate:
    """ASGI middleware (vLLM's --middleware): 401 for whoever does not know the key in the environment variable ENGINE_KEY, 423 for a run
    while the engine is another's."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._key = os.environ.get(ENGINE_KEY, "")
        self._claim = Claim()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        headers = dict(scope["headers"])
        known = knows_key(headers.get(b"authorization", b"").decode("latin-1"), self._key)
        refused = known and self._claim.is_refused(headers.get(RUN.lower().encode(), b"").decode("latin-1"))
        if scope["path"] in OPEN or (known and not refused):
            return await self._app(scope, receive, send)
        if known:
            return await _refuse(send, TAKEN_STATUS, TAKEN.format(LAPSES_SECONDS))
        return await _refuse(send, 401, "the key of this engine is needed")


async def _refuse(send: Send, status: int, message: str) -> None:
    body = f'{{"error": {{"message": "{message}", "code": {status}}}}}'.encode()
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})
