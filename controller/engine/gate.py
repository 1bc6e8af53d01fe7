"""What vLLM's server asks before anything else: does the caller know the key? Imports neither vllm nor torch.

vLLM's own --api-key guards generation, but not the routes that pause the engine or change its weights.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from controller.engine.names import ENGINE_KEY

OPEN = ("/health",)
"""Asked by whatever watches over processes; says nothing but that the engine lives."""

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


class Gate:
    """ASGI middleware (vLLM's --middleware): 401 for whoever does not know the key in the environment variable ENGINE_KEY."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._key = os.environ.get(ENGINE_KEY, "")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] in OPEN:
            return await self._app(scope, receive, send)
        given = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        if knows_key(given, self._key):
            return await self._app(scope, receive, send)
        body = b'{"error": {"message": "the key of this engine is needed", "code": 401}}'
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": body})
