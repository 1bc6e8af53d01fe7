"""`run.py retriever`: the in-process index as a server for others.

It speaks Search-R1's protocol; see `envs.search.remote`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from aiohttp import web

from envs.search.facts import load_passages
from envs.search.index import BM25Index
from envs.search.jsonl import read_corpus

DEFAULT_TOPK = 3
MAX_TOPK = 1000
MAX_QUERIES = 4096
MAX_BODY_BYTES = 16 << 20
"""Largest body of a request."""
MAX_ANSWER_BYTES = 64 << 20
"""Largest answer, by its passages."""

_QUERIES_AT_ONCE = 8
"""Queries of a request that are answered before it is another request's turn."""


class _RequestError(Exception):
    """A request that is refused, with an HTTP status; the message says why."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def build_app(index: BM25Index, ids: Sequence[str | int] | None = None) -> web.Application:
    """The application that answers POST /retrieve.

    `ids` are those of the index's passages; their numbers if there are none. A request with a
    mistake is answered with 400, one with too large an answer with 413, and both with `{"error":
    …}`.
    """
    service = _RetrievalService(index, ids)

    async def retrieve(request: web.Request) -> web.Response:
        try:
            parsed = await asyncio.to_thread(_parse_request, await request.read())
            hits = await service.answer(parsed)
        except _RequestError as error:
            return web.json_response({"error": str(error)}, status=error.status)
        return web.Response(
            text=f'{{"result": [{", ".join(hits)}]}}', content_type="application/json"
        )

    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.router.add_post("/retrieve", retrieve)
    return app


class _Request(NamedTuple):
    """A request whose fields have been checked."""

    queries: list[str]
    topk: int
    with_scores: bool


class _RetrievalService:
    """Answers requests from an index, of whose passages it knows the ids."""

    def __init__(self, index: BM25Index, ids: Sequence[str | int] | None) -> None:
        self._index = index
        self._ids = ids
        # Requests take turns, first come, first served: a light one does not wait for the whole of
        # a heavy one.
        self._turn = asyncio.Lock()

    async def answer(self, request: _Request) -> list[str]:
        """The list of hits of each query, as JSON in ASCII."""
        answers: list[str] = []
        size_bytes = 0
        for start in range(0, len(request.queries), _QUERIES_AT_ONCE):
            queries = request.queries[start : start + _QUERIES_AT_ONCE]
            async with self._turn:
                some = await asyncio.to_thread(self._search, queries, request)
            answers += some
            size_bytes += sum(map(len, some))
            if size_bytes > MAX_ANSWER_BYTES:
                raise _RequestError(
                    f"the answer is larger than {MAX_ANSWER_BYTES >> 20} MiB: ask fewer "
                    '"queries" at once, or a smaller "topk"',
                    413,
                )
        return answers

    def _search(self, queries: list[str], request: _Request) -> list[str]:
        answers = []
        for query in queries:
            hits = self._index.search(query, request.topk)
            documents = [self._hit(number, score, request.with_scores) for number, score in hits]
            answers.append(json.dumps(documents))
        return answers

    def _hit(self, number: int, score: float, with_score: bool) -> dict[str, Any]:
        passage_id: str | int = str(number)
        if self._ids is not None:
            passage_id = self._ids[number]
        document = {"id": passage_id, "contents": self._index.texts[number]}
        if not with_score:
            return document
        return {"document": document, "score": score}


def _parse_request(body: bytes) -> _Request:
    """The request in a body. _RequestError if it is not of the protocol."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _RequestError(f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict) or ("query" in fields) == ("queries" in fields):
        raise _RequestError('the body must be an object with either "query" or "queries"')
    queries = fields.get("queries", [fields.get("query")])
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise _RequestError('"query" must be a text, "queries" a list of texts')
    if len(queries) > MAX_QUERIES:
        raise _RequestError(f'"queries" are {len(queries)}, more than {MAX_QUERIES}')
    topk = fields.get("topk")
    if topk is None:
        topk = DEFAULT_TOPK
    if not isinstance(topk, int) or isinstance(topk, bool) or not 1 <= topk <= MAX_TOPK:
        raise _RequestError(f'"topk" must be a whole number from 1 to {MAX_TOPK}')
    with_scores = fields.get("return_scores", False)
    if not isinstance(with_scores, bool):
        raise _RequestError('"return_scores" must be true or false')
    return _Request(queries, topk, with_scores)


async def _exit_on_hangup(app: web.Application) -> None:
    """Have SIGHUP end the server between two callbacks, as aiohttp has it with Ctrl-C.

    Raised inside a callback, it would be a request's error. Under nohup it is ignored, and stays
    so.
    """
    del app
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _exit)


def _exit() -> None:
    raise web.GracefulExit


def _listen(host: str, port: int, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Sockets that listen at every address of `host`, until `stack` closes them.

    With port 0 all have the port that the first one got.
    """
    infos = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = dict.fromkeys((family, address[0]) for family, *_, address in infos)
    sockets: list[socket.socket] = []
    for family, address in addresses:
        listener = stack.enter_context(socket.create_server((address, port), family=family))
        port = listener.getsockname()[1]
        sockets.append(listener)
    return sockets


def main(arguments: Sequence[str]) -> int:
    """Serve until Ctrl-C or SIGTERM, as `run.py retriever`. Exit status 2 if that is impossible."""
    options = _parse_options(arguments)
    try:
        index, ids = _load_index(options.corpus)
        app = build_app(index, ids)
        app.on_startup.append(_exit_on_hangup)
        with contextlib.ExitStack() as stack:
            sockets = _listen(options.host, options.port, stack)
            address = f"http://{options.host}:{sockets[0].getsockname()[1]}/retrieve"
            started = f"{len(index.texts)} passages at {address}; Ctrl-C ends it"
            web.run_app(
                app,
                sock=sockets,
                access_log=None,
                shutdown_timeout=1.0,  # a client that goes on asking keeps nobody waiting
                print=lambda *_: print(started, flush=True),
            )
    except (OSError, OverflowError) as error:
        print(f"error: cannot listen on {options.host}:{options.port}: {error}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _load_index(corpus_path: str) -> tuple[BM25Index, list[str | int] | None]:
    """The index of a corpus and the ids of its passages; the project's own corpus for ""."""
    if not corpus_path:
        return BM25Index(load_passages()), None
    corpus = read_corpus(corpus_path)
    return BM25Index(corpus.texts), corpus.ids


def _parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run.py retriever", description="Serve passages by Search-R1's retrieval protocol."
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0: all (default: %(default)s)",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=8000,
        help="port to listen on; 0: any free one (default: %(default)s)",
    )
    parser.add_argument(
        "--corpus",
        default="",
        help="JSONL file of passages, id and contents (default: the project's own)",
    )
    return parser.parse_args(arguments)
