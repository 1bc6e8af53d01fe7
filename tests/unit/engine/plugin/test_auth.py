"""The middleware of the engine by itself.

It gives signs of life on streams, and releases claims.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from engine.constants import (
    ALIVE_HEADER,
    CHECK_ROUTE,
    CLAIM_ROUTE,
    ENGINE_KEY_VARIABLE,
    GATED_HEADER,
    RUN_HEADER,
)
from engine.plugin import auth as gate
from engine.plugin.auth import COMMENT, App, BearerAuthMiddleware, Message, Receive, Send

EVENT = b'data: {"n": 1}\n\n'
EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")
SILENCE_SECONDS = 0.2
"""Many times ALIVE_SECONDS as the tests have it."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "ALIVE_SECONDS", 0.02)


async def ask(
    app: App,
    method: str = "POST",
    path: str = "/x",
    body: Sequence[bytes] = (b"",),
    **headers: str,
) -> list[Message]:
    """Messages of the answer; `body` comes in its pieces."""
    sent = []
    pieces = list(body)

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    raw_headers = [
        (name.replace("_", "-").lower().encode(), value.encode()) for name, value in headers.items()
    ]
    scope = {"type": "http", "method": method, "path": path, "headers": raw_headers}
    await app(scope, receive, send)
    return sent


def app_that_sends(*steps: bytes | None, header: tuple[bytes, bytes] = EVENT_STREAM) -> App:
    """An app whose body is the pieces among the steps; it is silent at each None."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [header]})
        for step in steps:
            if step is None:
                await asyncio.sleep(SILENCE_SECONDS)
            else:
                await send({"type": "http.response.body", "body": step, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        await asyncio.sleep(SILENCE_SECONDS)

    return app


def pieces_of(sent: list[Message]) -> list[bytes]:
    return [message["body"] for message in sent if message["type"] == "http.response.body"]


def headers_of(sent: list[Message]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in sent[0]["headers"]}


@pytest.mark.slow
@pytest.mark.parametrize("steps", [(None, EVENT), (EVENT, None, EVENT), (EVENT, None)])
async def test_a_stream_between_two_events_says_that_it_is_alive(steps: tuple) -> None:
    sent = await ask(BearerAuthMiddleware(app_that_sends(*steps)))
    pieces = pieces_of(sent)
    assert pieces.count(COMMENT) >= 3
    assert [piece for piece in pieces if piece != COMMENT] == [*filter(None, steps), b""]
    silence = steps.index(None)
    assert pieces[silence] == COMMENT
    assert headers_of(sent)[ALIVE_HEADER.lower()] == "0.02"


async def test_a_stream_that_has_something_to_say_says_nothing_else() -> None:
    sent = await ask(BearerAuthMiddleware(app_that_sends(*[EVENT] * 50)))
    assert pieces_of(sent) == [*[EVENT] * 50, b""]


@pytest.mark.slow
async def test_nothing_is_put_into_the_middle_of_an_event() -> None:
    sent = await ask(BearerAuthMiddleware(app_that_sends(EVENT[:6], None, EVENT[6:], None)))
    pieces = pieces_of(sent)
    assert pieces[:3] == [EVENT[:6], EVENT[6:], COMMENT]


@pytest.mark.slow
async def test_nothing_comes_after_the_end_of_a_stream() -> None:
    sent = await ask(BearerAuthMiddleware(app_that_sends(EVENT, None)))
    assert pieces_of(sent)[-1] == b""
    assert [message["more_body"] for message in sent[1:]].index(False) == len(sent) - 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "header", [(b"content-type", b"application/json"), (b"content-length", b"0")]
)
async def test_other_answers_are_left_as_they_are(header: tuple[bytes, bytes]) -> None:
    sent = await ask(BearerAuthMiddleware(app_that_sends(EVENT, None, header=header)))
    assert pieces_of(sent) == [EVENT, b""]
    assert ALIVE_HEADER.lower() not in headers_of(sent) and GATED_HEADER.lower() in headers_of(sent)


async def test_an_app_that_fails_leaves_nobody_who_says_that_it_is_alive() -> None:
    async def failing(scope: Message, receive: Receive, send: Send) -> None:
        await app_that_sends(EVENT)(
            scope, receive, lambda message: send({**message, "more_body": True})
        )
        raise RuntimeError("a test says so")

    with pytest.raises(RuntimeError, match="a test says so"):
        await ask(BearerAuthMiddleware(failing))
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.slow
async def test_a_run_that_releases_the_engine_leaves_it_to_the_next() -> None:
    guarded = BearerAuthMiddleware(app_that_sends())

    async def status(run: str, method: str = "GET", path: str = "/weight_info") -> int:
        sent = await ask(guarded, method, path, **{RUN_HEADER: run})
        assert headers_of(sent)[GATED_HEADER.lower()]
        return sent[0]["status"]

    assert await status("first") == 200
    assert await status("second") == gate.TAKEN_STATUS
    assert await status("second", "DELETE", CLAIM_ROUTE) == gate.TAKEN_STATUS
    assert await status("second") == gate.TAKEN_STATUS, "it was not the second one's to release"
    assert await status("first", "DELETE", CLAIM_ROUTE) == 200
    assert await status("second") == 200
    assert await status("first") == gate.TAKEN_STATUS


async def test_nobody_releases_an_engine_without_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENGINE_KEY_VARIABLE, "secret")
    guarded = BearerAuthMiddleware(app_that_sends())
    bearer = gate.bearer("secret")
    await ask(guarded, **{RUN_HEADER: "first", "Authorization": bearer})
    (start, _) = await ask(guarded, "DELETE", CLAIM_ROUTE, **{RUN_HEADER: "first"})
    assert start["status"] == 401
    sent = await ask(guarded, **{RUN_HEADER: "second", "Authorization": bearer})
    assert sent[0]["status"] == gate.TAKEN_STATUS


@pytest.mark.parametrize("pieces", [1, 3])
async def test_a_request_to_check_a_file_is_answered_beside_the_app(
    tmp_path: Path, pieces: int
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    checksum = hashlib.sha256(b"weights").hexdigest()
    body = msgspec.json.encode({"path": str(file), "checksum": checksum})
    size = -(-len(body) // pieces)
    parts = [body[i : i + size] for i in range(0, len(body), size)]

    async def forbidden(scope: Message, receive: Receive, send: Send) -> None:
        raise AssertionError("the app is not to hear of it")

    guarded = BearerAuthMiddleware(forbidden)
    start, answer = await ask(guarded, "POST", CHECK_ROUTE, body=parts)
    assert start["status"] == 200
    status = file.stat()
    expected = [status.st_ino, status.st_size, status.st_mtime_ns]
    assert msgspec.json.decode(answer["body"]) == {"identity": expected}
