"""Retrieval over HTTP: our client and our server speak Search-R1's protocol.

They speak it to each other and to others, and bear each other's faults.
"""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.base import EnvironmentFailure
from envs.search.environment import Search
from envs.search.facts import load_passages
from envs.search.index import BM25Index
from envs.search.remote import RemoteRetriever, parse_answer
from envs.search.server import build_app, main
from protocol.lifetime import dying_with_parent
from supervisor.endpoints import free_port
from tests.fixtures import ROOT

TEXTS = ["The capital of Bhutan is Thimphu.", "The capital of Peru is Lima.", "Paro is in Bhutan."]
INDEX = BM25Index(TEXTS)
HIT = {"document": {"contents": "Paro is in Bhutan."}, "score": 1.0}


@asynccontextmanager
async def serving(app: web.Application):
    """The address of /retrieve while `app` is served."""
    async with TestServer(app) as server:
        yield str(server.make_url("/retrieve"))


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
    async with serving(app) as url:
        yield url, bodies


async def ask(
    url: str, query: str = "capital of Bhutan", topk: int = 2, **limits: float
) -> list[str]:
    remote = RemoteRetriever(url, **limits)
    return await asyncio.to_thread(remote.retrieve, query, topk)


async def post(url: str, body: object) -> tuple[int, dict]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, **({"data": body} if isinstance(body, bytes) else {"json": body})) as got,
    ):
        return got.status, await got.json()


# Our server


async def test_several_queries_are_answered_each_with_a_list():
    async with serving(build_app(INDEX)) as url:
        status, answer = await post(
            url, {"queries": ["Paro", "Peru", "nothing"], "topk": 1, "return_scores": True}
        )
    assert status == 200
    assert [[hit["document"]["contents"] for hit in hits] for hits in answer["result"]] == [
        [TEXTS[2]],
        [TEXTS[1]],
        [],
    ]
    assert answer["result"][0][0]["score"] == INDEX.search("Paro", 1)[0][1]


async def test_one_query_is_answered_with_one_list():
    async with serving(build_app(INDEX)) as url:
        assert await post(url, {"query": "Paro", "topk": 1, "return_scores": True}) == await post(
            url, {"queries": ["Paro"], "topk": 1, "return_scores": True}
        )


async def test_without_scores_documents_are_answered_bare():
    async with serving(build_app(INDEX)) as url:
        _, answer = await post(url, {"queries": ["Paro"]})
    assert answer == {"result": [[{"id": "2", "contents": TEXTS[2]}]]}


async def test_three_passages_are_answered_if_nothing_is_said():
    async with serving(build_app(BM25Index(["Paro"] * 5))) as url:
        _, answer = await post(url, {"queries": ["Paro"], "topk": None})
    assert len(answer["result"][0]) == 3


async def test_documents_are_answered_by_their_own_ids():
    async with serving(build_app(INDEX, ["x", 7, "wiki/2"])) as url:
        _, answer = await post(url, {"queries": ["Paro", "Peru"], "topk": 1})
    assert [hits[0]["id"] for hits in answer["result"]] == ["wiki/2", 7]


async def test_a_light_request_is_answered_while_a_heavy_one_is_under_way():
    async with serving(build_app(BM25Index(load_passages()))) as url:
        heavy = asyncio.ensure_future(
            post(url, {"queries": ["the capital city"] * 4096, "topk": 10})
        )
        asked = 0
        while not heavy.done():
            status, _ = await post(url, {"query": "Paro", "topk": 1})
            asked += status == 200
        assert (await heavy)[0] == 200
    assert asked > 3


async def test_an_answer_is_bounded_and_the_error_says_by_what():
    async with serving(build_app(BM25Index([f"Paro {'x' * (1 << 20)}"] * 10))) as url:
        status, answer = await post(url, {"queries": ["Paro"] * 9, "topk": 10})
    assert status == 413
    assert "larger than 64 MiB" in answer["error"] and "topk" in answer["error"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        ([], "either"),
        ({}, "either"),
        ({"query": "a", "queries": ["a"]}, "either"),
        ({"query": 3}, '"query" must be a text'),
        ({"queries": "a"}, '"queries" a list of texts'),
        ({"queries": [None]}, '"queries" a list of texts'),
        ({"queries": ["a"] * 5000}, "5000, more than 4096"),
        ({"query": "a", "topk": 0}, '"topk"'),
        ({"query": "a", "topk": "3"}, '"topk"'),
        ({"query": "a", "topk": True}, '"topk"'),
        ({"query": "a", "return_scores": "yes"}, '"return_scores"'),
    ],
)
async def test_a_malformed_request_is_answered_with_400_and_the_reason(body, message):
    async with serving(build_app(INDEX)) as url:
        status, answer = await post(url, body)
    assert status == 400
    assert message in answer["error"]


def test_the_server_serves_a_file_until_it_is_interrupted(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "0", "contents": "Paro is in Bhutan."}')
    port = free_port()
    command = [sys.executable, "run.py", "retriever", "--port", str(port), "--corpus", str(corpus)]
    how = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "preexec_fn": dying_with_parent(),
    }
    with subprocess.Popen(command, cwd=ROOT, **how) as server:
        try:
            assert (
                server.stdout.readline()
                == f"1 passages at http://127.0.0.1:{port}/retrieve; Ctrl-C ends it\n"
            )
            assert RemoteRetriever(f"http://127.0.0.1:{port}").retrieve("Paro", 3) == [
                "Paro is in Bhutan."
            ]
            server.send_signal(signal.SIGINT)
            assert server.communicate(timeout=10) == ("", "")
            assert server.returncode == 0
        finally:
            server.kill()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_any_free_port_is_said_as_the_one_that_is_listened_on(host: str):
    command = [sys.executable, "run.py", "retriever", "--host", host, "--port", "0"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=dying_with_parent()
    ) as server:
        try:
            address = re.search(rf"http://{host}:[1-9]\d*(?=/retrieve;)", server.stdout.readline())[
                0
            ]
            assert len(RemoteRetriever(address).retrieve("Bhutan", 3)) == 3
        finally:
            server.kill()


def test_a_taken_port_is_an_error_that_names_it(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["--port", str(taken.getsockname()[1])]) == 2
        assert f"cannot listen on 127.0.0.1:{taken.getsockname()[1]}" in capsys.readouterr().err


def test_a_missing_corpus_is_an_error_that_names_it(capsys):
    assert main(["--corpus", "nowhere.jsonl"]) == 2
    assert "nowhere.jsonl cannot be read" in capsys.readouterr().err


# Our client


async def test_the_client_gets_from_our_server_what_the_index_finds():
    async with serving(build_app(INDEX)) as url:
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


async def test_server_errors_are_tried_again():
    async def at_the_third(body, number):
        return await json_answer([[HIT]]) if number == 3 else web.Response(status=500 + number)

    async with answering(at_the_third) as (url, bodies):
        assert await ask(url) == ["Paro is in Bhutan."]
    assert len(bodies) == 3


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
    async with serving(app) as url:
        with pytest.raises(EnvironmentFailure, match="took too long"):
            await ask(url, attempt_timeout_s=0.2, deadline_s=0.3)


async def test_a_server_that_fails_until_the_deadline_is_a_failure_that_says_how():
    async with answering(lambda body, number: json_answer("busy", status=503)) as (url, _):
        with pytest.raises(
            EnvironmentFailure,
            match=r"retrieve did not answer within 0\.5 s: 503 Service Unavailable",
        ):
            await ask(url, deadline_s=0.5)


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


@settings(deadline=None)
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
    async with serving(build_app(INDEX)) as url:
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
