"""HTTP to an engine: answers and events of any size in any pieces.

Here is also what stands before an engine and answers for it, and ends that are gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from engine import connection, pool
from engine.client import EngineClient, Sampling
from engine.connection import EngineBusy, EngineError, EngineUnreachable, EventReader
from engine.constants import ALIVE_HEADER, CLAIM_ROUTE, RUN_HEADER
from engine.pool import EnginePool, Health
from tests.fixtures.servers import serve_app

SAMPLING = Sampling(max_tokens=4, cache_salt="")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def answering(
    generates: Handler, aborts: Handler | None = None
) -> AsyncIterator[EngineClient]:
    """A client of a server that answers so."""

    async def aborted(_: web.Request) -> web.Response:
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/inference/v1/generate", generates)
    app.router.add_post("/abort_requests", aborts or aborted)
    async with serve_app(app) as url:
        client = EngineClient(url)
        try:
            yield client
        finally:
            await client.close()


def answer(tokens: int, finish: str | None = "stop", top: int = 0) -> bytes:
    """Make the JSON of a response, or of an event of a stream, of so many tokens.

    Each has `top` further log-probs.
    """
    entry = {
        "logprob": -1.0,
        "top_logprobs": [
            {"logprob": -1.0 - i, "rank": i + 1, "token": "x" * 20} for i in range(top)
        ],
    }
    return msgspec.json.encode(
        {
            "choices": [
                {
                    "token_ids": [5] * tokens,
                    "logprobs": {"content": [entry] * tokens},
                    "finish_reason": finish,
                }
            ]
        }
    )


async def generated(client: EngineClient) -> list[int]:
    return (await client.generate("turn", [1], SAMPLING, watched=False)).tokens


async def streamed(client: EngineClient) -> list[int]:
    return [
        token
        async for chunk in client.stream("turn", [1], SAMPLING, log_probs=20)
        for token in chunk.tokens
    ]


def streaming(*pieces: bytes) -> Handler:
    """Sends the pieces, and ends the connection."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
        return response

    return handler


LINE = st.binary(max_size=12).map(lambda raw: raw.replace(b"\r", b"").replace(b"\n", b""))


@given(
    st.lists(st.lists(LINE, min_size=1, max_size=3), max_size=5),
    st.sampled_from([b"\n", b"\r\n"]),
    st.data(),
)
def test_events_are_the_same_in_whatever_pieces_they_come(
    sent: list[list[bytes]], end: bytes, data: st.DataObject
) -> None:
    """Events are the same in whatever pieces they come.

    They are of some lines of data each, with comments and other fields between them; the last one
    has not ended, and is none.
    """
    raw = b"".join(
        b": alive"
        + end
        + b"event: x"
        + end
        + b"".join(b"data: " + line + end for line in lines)
        + end
        for lines in sent
    )
    raw += b"data: never ends"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    reader = EventReader()
    found = [
        event
        for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)
        for event in reader.feed(raw[a:b])
    ]
    assert found == [b"\n".join(lines) for lines in sent]


def test_an_event_without_end_is_refused_before_it_takes_all_memory() -> None:
    reader = EventReader(max_event_bytes=1000)
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        for _ in range(100):
            list(reader.feed(b"data: " + b"x" * 90 + b"\n"))


async def test_a_large_event_of_a_stream_is_read() -> None:
    """An event of 640 KB is read: six hundred merged tokens with twenty log-probs each."""
    event = b"data: " + answer(600, finish=None, top=20) + b"\n\n"
    assert len(event) > 640_000
    async with answering(
        streaming(event, b": a comment\n\n", b"data:" + answer(1) + b"\n\n")
    ) as client:
        assert await streamed(client) == [5] * 601


async def test_what_comes_after_the_last_token_of_a_stream_may_be_missing() -> None:
    """No [DONE], and the connection stays open for ever."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = await streaming(b"data: " + answer(3) + b"\n\n")(request)
        await asyncio.Event().wait()
        return response

    async with answering(handler) as client:
        assert await asyncio.wait_for(streamed(client), 10) == [5] * 3


def streaming_slowly(seconds: float, **headers: str) -> Handler:
    """Sends an event, is silent for some time, and sends the last event."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        await response.write(b"data: " + answer(3, finish=None) + b"\n\n")
        await asyncio.sleep(seconds)
        await response.write(b"data: " + answer(1) + b"\n\n")
        return response

    return handler


@pytest.mark.slow
async def test_a_stream_that_is_never_silent_and_falls_silent_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "SILENT_SECONDS", 0.3)
    async with answering(streaming_slowly(20.0, **{ALIVE_HEADER: "10"})) as client:
        with pytest.raises(EngineUnreachable, match=r"/generate was silent for 0\.3 s"):
            await asyncio.wait_for(streamed(client), 10)


@pytest.mark.slow
async def test_other_streams_may_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SILENT_SECONDS", 0.1)
    async with answering(streaming_slowly(0.5)) as client:
        assert await streamed(client) == [5] * 4


@pytest.mark.slow
async def test_a_stream_is_not_lost_because_this_process_stood_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "SILENT_SECONDS", 0.9)
    async with answering(streaming_slowly(0.1, **{ALIVE_HEADER: "10"})) as client:
        turn = asyncio.create_task(streamed(client))
        await asyncio.sleep(0.1)
        time.sleep(1.2)  # server and client alike
        assert await turn == [5] * 4


async def test_a_run_that_ends_does_not_wait_for_engines_that_say_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.client.RELEASE_SECONDS", 0.2)
    asked = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        await asyncio.Event().wait()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    engines = EnginePool([url, url, "http://127.0.0.1:9"], run="first")
    await asyncio.wait_for(engines.close(), 5)
    assert len(asked) == 2
    assert all(raw.startswith(f"DELETE {CLAIM_ROUTE} ".encode()) for raw in asked)
    assert all(f"{RUN_HEADER}: first".encode() in raw for raw in asked)
    server.close()


async def test_an_answer_larger_than_any_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.client.MAX_ANSWER_BYTES", 10_000)
    async with answering(streaming(*[b"x" * 1000] * 20)) as client:
        with pytest.raises(EngineError, match="more than 10000 bytes"):
            await generated(client)


async def test_a_compressed_answer_is_read() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=gzip.compress(answer(3)), headers={"Content-Encoding": "gzip"})

    async with answering(handler) as client:
        assert await generated(client) == [5] * 3


@pytest.mark.parametrize("ask", [generated, streamed])
@pytest.mark.parametrize(
    ("status", "headers", "kind", "said"),
    [
        (500, {}, EngineError, "500 <html> x x"),
        (502, {}, EngineUnreachable, "502 <html> x x"),
        (503, {}, EngineUnreachable, "503 <html> x x"),
        (429, {}, EngineBusy, "429 <html> x x"),
        (503, {"Retry-After": "7"}, EngineBusy, "503 <html> x x"),
        (
            307,
            {"Location": "https://elsewhere/"},
            EngineError,
            "redirected to https://elsewhere/; .*engine.urls",
        ),
        (302, {"Location": "/login"}, EngineError, "redirected to /login"),
    ],
)
async def test_what_a_proxy_answers_is_one_short_sentence(
    ask: Callable[[EngineClient], Awaitable[list[int]]],
    status: int,
    headers: dict[str, str],
    kind: type[EngineError],
    said: str,
) -> None:
    """Not a page of a megabyte; and it is known whether the engine may have been asked."""

    async def handler(_: web.Request) -> web.Response:
        return web.Response(text="<html>\n" + "x " * 500_000, status=status, headers=headers)

    async with answering(handler) as client:
        with pytest.raises(EngineError, match=said) as raised:
            await ask(client)
    assert type(raised.value) is kind and len(str(raised.value)) < 700
    if kind is EngineBusy:
        assert raised.value.seconds == float(headers.get("Retry-After", 1))


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        (None, 1.0),
        ("0", 0.1),
        ("12", 12.0),
        ("99999", 30.0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 1.0),
        ("-1", 1.0),
    ],
)
def test_the_wait_that_is_asked_for_is_bounded(asked: str | None, seconds: float) -> None:
    assert connection.parse_retry_seconds(asked) == seconds


async def test_engines_are_asked_directly_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    async with answering(streaming(answer(2))) as client:
        assert await generated(client) == [5, 5]


async def test_a_connection_whose_other_end_is_gone_breaks_within_half_a_minute() -> None:
    ended = asyncio.Event()

    async def hold(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await ended.wait()
        return response

    app = web.Application()
    app.router.add_get("/", hold)
    async with (
        serve_app(app) as url,
        connection.new_session({}, reuses=False) as session,
        session.get(url) as response,
    ):
        made = response.connection.transport.get_extra_info("socket")
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle, every, times = (
            made.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
            for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
        )
        assert idle + every * times <= 30
        assert 0 < made.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 30_000
        ended.set()


async def test_abandoned_turns_are_aborted_together_even_if_the_first_request_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Turns that were left are aborted together also when the first word of it is lost."""
    monkeypatch.setattr("engine.client.ABORT_EVERY", 0.05)
    begun = asyncio.Semaphore(0)
    told = asyncio.Queue()
    aborted: list[list[str]] = []

    async def generates(_: web.Request) -> web.Response:
        begun.release()
        await asyncio.Event().wait()

    async def aborts(request: web.Request) -> web.Response:
        aborted.append((await request.json())["request_ids"])
        told.put_nowait(None)
        return web.Response(status=502 if len(aborted) == 1 else 200, text="{}")

    async with answering(generates, aborts) as client:
        turns = [
            asyncio.create_task(client.generate(f"turn{i}", [1], SAMPLING, watched=False))
            for i in range(3)
        ]
        async with asyncio.timeout(20):
            for _ in turns:
                await begun.acquire()
            for turn in turns:
                turn.cancel()
            await asyncio.wait(turns)
            for _ in range(2):
                await told.get()
    assert aborted == [[f"generate-tokens-turn{i}" for i in range(3)]] * 2


@pytest.mark.slow
async def test_an_engine_that_is_gone_is_found_out_though_it_has_no_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, seconds in {
        "WATCH_EVERY_S": 0.02,
        "PROBE_TIMEOUT_S": 0.1,
        "PROBE_EVERY_S": 0.02,
        "DEAD_AFTER_S": 0.2,
    }.items():
        monkeypatch.setattr(pool, name, seconds)
    server = await asyncio.start_server(
        lambda *_: asyncio.Event().wait(), "127.0.0.1", 0
    )  # takes connections, and never answers
    engines = EnginePool([f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"])
    watching = asyncio.create_task(engines.watch())
    async with asyncio.timeout(20):
        while [health for health, _ in engines.status().values()] != [Health.DEAD]:
            await asyncio.sleep(0.01)
    watching.cancel()
    await engines.close()
    server.close()
