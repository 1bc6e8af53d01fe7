"""Client of a server of passages: what it asks, what it reads, and when it gives up."""

import asyncio
import json
import socket
from contextlib import asynccontextmanager, suppress

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from envs.base import EnvironmentFailure
from envs.search.environment import Search
from envs.search.index import BM25Index
from envs.search.remote import RemoteRetriever, parse_answer
from envs.search.server import build_app
from tests.fixtures.servers import serve_app

TEXTS = ["The capital of Bhutan is Thimphu.", "The capital of Peru is Lima.", "Paro is in Bhutan."]
INDEX = BM25Index(TEXTS)


HIT = {"document": {"contents": "Paro is in Bhutan."}, "score": 1.0}


@asynccontextmanager
async def answering(answer):
    """Give the address of a server that answers by `answer(body, number)`.

    With it come the bodies that the server got.
    """
    bodies = []

    async def retrieve(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        return await answer(bodies[-1], len(bodies))

    app = web.Application()
    app.router.add_post("/retrieve", retrieve)
    async with serve_app(app, "/retrieve") as url:
        yield url, bodies


async def ask(
    url: str, query: str = "capital of Bhutan", topk: int = 2, **limits: float
) -> list[str]:
    remote = RemoteRetriever(url, **limits)
    return await asyncio.to_thread(remote.retrieve, query, topk)


async def test_the_client_gets_from_our_server_what_the_index_finds():
    async with serve_app(build_app(INDEX), "/retrieve") as url:
        for query in ("capital of Bhutan", "Paro", "nothing"):
            assert await ask(url, query) == INDEX.retrieve(query, 2)


async def test_the_client_asks_in_the_form_of_search_r1():
    async with answering(lambda body, number: json_answer([[HIT]])) as (url, bodies):
        assert await ask(url) == ["Paro is in Bhutan."]
    assert bodies == [{"queries": ["capital of Bhutan"], "topk": 2, "return_scores": True}]


async def test_a_server_that_takes_one_query_is_asked_like_that_from_then_on():
    async def one_only(body, number):
        return (
            await json_answer([[HIT]])
            if "query" in body
            else web.json_response({"detail": "query: field required"}, status=422)
        )

    async with answering(one_only) as (url, bodies):
        remote = RemoteRetriever(url)
        for _ in range(2):
            assert await asyncio.to_thread(remote.retrieve, "Paro", 3) == ["Paro is in Bhutan."]
    assert [sorted(body) for body in bodies] == [
        ["queries", "return_scores", "topk"],
        ["query", "return_scores", "topk"],
        ["query", "return_scores", "topk"],
    ]


@pytest.mark.parametrize(
    "result",
    [
        [[HIT]],
        [HIT],
        [[HIT["document"]]],
        [[{"document": {"title": "", "text": "Paro is in Bhutan."}}]],
        [[HIT, HIT, HIT]],
    ],
    ids=[
        "as specified",
        "a single list",
        "without scores",
        "title and text",
        "more than asked for",
    ],
)
async def test_the_client_reads_what_servers_answer(result):
    async with answering(lambda body, number: json_answer(result)) as (url, _):
        assert {" ".join(text.split()) for text in await ask(url, topk=2)} == {"Paro is in Bhutan."}
        assert len(await ask(url, topk=2)) <= 2


async def test_half_a_character_is_replaced():
    async with answering(lambda body, number: json_answer([[{"contents": "Paro \ud83d"}]])) as (
        url,
        _,
    ):
        assert await ask(url) == ["Paro ?"]


@pytest.mark.parametrize("result", [[], [[]]])
async def test_nothing_found_is_no_failure(result):
    async with answering(lambda body, number: json_answer(result)) as (url, _):
        assert await ask(url) == []


@pytest.mark.slow
async def test_server_errors_are_tried_again():
    async def at_the_third(body, number):
        return await json_answer([[HIT]]) if number == 3 else web.Response(status=500 + number)

    async with answering(at_the_third) as (url, bodies):
        assert await ask(url) == ["Paro is in Bhutan."]
    assert len(bodies) == 3


@pytest.mark.slow
async def test_an_answer_that_does_not_come_is_tried_again():
    async def at_the_second(body, number):
        if number == 1:
            await asyncio.Event().wait()
        return await json_answer([[HIT]])

    async with answering(at_the_second) as (url, _):
        assert await ask(url, attempt_timeout_s=0.3) == ["Paro is in Bhutan."]


async def test_an_answer_that_is_cut_off_is_tried_again():
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        whole = json.dumps({"result": [[HIT]]}).encode()
        sent = whole if connections else whole[: len(whole) // 2]
        connections.append(writer)
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % len(whole)
            + sent
        )
        await writer.drain()
        writer.close()

    connections: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(cut, "127.0.0.1", 0) as server:
        assert await ask(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/retrieve") == [
            "Paro is in Bhutan."
        ]
    assert len(connections) == 2


async def test_an_answer_that_drips_is_given_up():
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0)

    app = web.Application()
    app.router.add_post("/retrieve", drip)
    async with serve_app(app, "/retrieve") as url:
        with pytest.raises(EnvironmentFailure, match="took too long"):
            await ask(url, attempt_timeout_s=0.2, deadline_s=0.3)


@pytest.mark.slow
async def test_a_server_that_fails_until_the_deadline_is_a_failure_that_says_how():
    async with answering(lambda body, number: json_answer("busy", status=503)) as (url, _):
        with pytest.raises(
            EnvironmentFailure,
            match=r"retrieve did not answer within 0\.5 s: 503 Service Unavailable",
        ):
            await ask(url, deadline_s=0.5)


@pytest.mark.slow
async def test_request_cut_short_by_the_deadline_does_not_hide_the_failure_before_it():
    """An attempt that the deadline cut short does not hide why the one before it failed."""
    never = asyncio.Event()

    async def first_busy_then_silent(body: dict, number: int) -> web.StreamResponse:
        if number > 1:
            await never.wait()
        return await json_answer("busy", status=503)

    async with answering(first_busy_then_silent) as (url, _):
        with pytest.raises(EnvironmentFailure, match="503 Service Unavailable"):
            await ask(url, deadline_s=1.0)
        never.set()


async def test_a_refusal_is_a_failure_at_once():
    async with answering(lambda body, number: json_answer("no key", status=401)) as (url, bodies):
        with pytest.raises(EnvironmentFailure, match=r'answered 401: {"result": "no key"}'):
            await ask(url)
    assert len(bodies) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html>",
        "[]",
        "{}",
        '{"result": null}',
        '{"result": [[{}]]}',
        '{"result": [["a"]]}',
        '{"result": [[{"contents": 1}]]}',
    ],
)
async def test_garbage_is_a_failure_that_shows_it(text):
    async def garbage(body, number):
        return web.Response(text=text)

    async with answering(garbage) as (url, _):
        with pytest.raises(EnvironmentFailure, match="does not speak Search-R1's protocol"):
            await ask(url)


@given(
    st.binary(max_size=40)
    | st.text(alphabet='{}[]":,result0 documentcs', max_size=40).map(str.encode)
)
def test_no_answer_raises_anything_else(answer):
    with suppress(ValueError):
        assert isinstance(parse_answer(answer), list)


async def test_a_server_that_is_not_there_is_a_failure():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(EnvironmentFailure, match="refused"):
            await ask(url, deadline_s=0.3)


async def test_a_failed_search_takes_no_turn_and_earns_no_reward():
    async def at_first(body, number):
        return web.Response(status=404) if number == 1 else await json_answer([[HIT]])

    async with answering(at_first) as (url, _):
        episode = (await asyncio.to_thread(Search, url=url, max_turns=1)).start("train", 0)
        with pytest.raises(EnvironmentFailure):
            await asyncio.to_thread(episode.step, "<search>Paro</search>")
        assert episode.scores["searches"] == 0
        result = await asyncio.to_thread(episode.step, "<search>Paro</search>")
    assert result.done
    assert "Doc 1: Paro is in Bhutan." in result.observation.text


def through(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, proxy)


async def test_a_server_on_this_machine_is_asked_directly_whatever_proxy_is_set(
    monkeypatch: pytest.MonkeyPatch,
):
    through(monkeypatch, "http://127.0.0.1:9")
    async with serve_app(build_app(INDEX), "/retrieve") as url:
        for host in ("127.0.0.1", "localhost"):
            assert await ask(url.replace("127.0.0.1", host), "Paro", 1) == [TEXTS[2]]


async def test_an_error_names_the_proxy_that_was_asked_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
):
    through(monkeypatch, "http://me:secret@127.0.0.1:9")
    with pytest.raises(
        EnvironmentFailure,
        match=r"refused.* \(asked through http_proxy 127\.0\.0\.1:9; no_proxy=retriever\.test",
    ):
        await ask("http://retriever.test:8000", deadline_s=0.3)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://host/retrieve", "http://", "http://host:port", "http://[half"]
)
def test_what_is_no_address_is_an_error(url):
    with pytest.raises(ValueError, match=r"env\.settings\.url"):
        RemoteRetriever(url)


async def json_answer(result: object, status: int = 200) -> web.Response:
    return web.json_response({"result": result}, status=status)
