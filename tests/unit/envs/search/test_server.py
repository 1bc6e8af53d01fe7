"""Server of passages: its answers, bounds and errors, and the command that starts it."""

import asyncio
import re
import signal
import socket
import subprocess
import sys

import aiohttp
import pytest

from envs.search.facts import load_passages
from envs.search.index import BM25Index
from envs.search.remote import RemoteRetriever
from envs.search.server import build_app, main
from protocol.lifetime import dying_with_parent
from supervisor.endpoints import free_port
from tests.fixtures import ROOT
from tests.fixtures.servers import serve_app

TEXTS = ["The capital of Bhutan is Thimphu.", "The capital of Peru is Lima.", "Paro is in Bhutan."]


INDEX = BM25Index(TEXTS)


async def post(url: str, body: object) -> tuple[int, dict]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, **({"data": body} if isinstance(body, bytes) else {"json": body})) as got,
    ):
        return got.status, await got.json()


async def test_several_queries_are_answered_each_with_a_list():
    async with serve_app(build_app(INDEX), "/retrieve") as url:
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
    async with serve_app(build_app(INDEX), "/retrieve") as url:
        assert await post(url, {"query": "Paro", "topk": 1, "return_scores": True}) == await post(
            url, {"queries": ["Paro"], "topk": 1, "return_scores": True}
        )


async def test_without_scores_documents_are_answered_bare():
    async with serve_app(build_app(INDEX), "/retrieve") as url:
        _, answer = await post(url, {"queries": ["Paro"]})
    assert answer == {"result": [[{"id": "2", "contents": TEXTS[2]}]]}


async def test_three_passages_are_answered_if_nothing_is_said():
    async with serve_app(build_app(BM25Index(["Paro"] * 5)), "/retrieve") as url:
        _, answer = await post(url, {"queries": ["Paro"], "topk": None})
    assert len(answer["result"][0]) == 3


async def test_documents_are_answered_by_their_own_ids():
    async with serve_app(build_app(INDEX, ["x", 7, "wiki/2"]), "/retrieve") as url:
        _, answer = await post(url, {"queries": ["Paro", "Peru"], "topk": 1})
    assert [hits[0]["id"] for hits in answer["result"]] == ["wiki/2", 7]


@pytest.mark.slow
async def test_a_light_request_is_answered_while_a_heavy_one_is_under_way():
    async with serve_app(build_app(BM25Index(load_passages())), "/retrieve") as url:
        heavy = asyncio.ensure_future(
            post(url, {"queries": ["the capital city"] * 4096, "topk": 10})
        )
        asked = 0
        while not heavy.done():
            status, _ = await post(url, {"query": "Paro", "topk": 1})
            asked += status == 200
        assert (await heavy)[0] == 200
    assert asked > 3


@pytest.mark.slow
async def test_an_answer_is_bounded_and_the_error_says_by_what():
    index = BM25Index([f"Paro {'x' * (1 << 20)}"] * 10)
    async with serve_app(build_app(index), "/retrieve") as url:
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
    async with serve_app(build_app(INDEX), "/retrieve") as url:
        status, answer = await post(url, body)
    assert status == 400
    assert message in answer["error"]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_taken_port_is_an_error_that_names_it(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["--port", str(taken.getsockname()[1])]) == 2
        assert f"cannot listen on 127.0.0.1:{taken.getsockname()[1]}" in capsys.readouterr().err


def test_a_missing_corpus_is_an_error_that_names_it(capsys):
    assert main(["--corpus", "nowhere.jsonl"]) == 2
    assert "nowhere.jsonl cannot be read" in capsys.readouterr().err
